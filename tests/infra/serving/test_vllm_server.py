"""Real vLLM servers, one that samples and one that scores; no process outlives them or their parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from infra.errors import BadInput
from infra.processes.devices import Machine
from infra.processes.watchdog import _descendants
from infra.serving import vllm_server
from infra.serving.completions import Client, Completion, CompletionError, Request, Sampling, classify, complete
from infra.serving.vllm_server import ServerError, ServerOptions, VllmServer

OPTIONS = ServerOptions(max_model_len=128, dtype="float32", kv_cache_gib=0.25, max_num_seqs=32)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def served(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with VllmServer(policy, OPTIONS, tmp_path_factory.mktemp("log") / "server.log") as server:
        yield server


def sample(server: VllmServer, requests: list[Request], sampling: Sampling) -> dict[str, list[Completion]]:
    found: dict[str, list[Completion]] = {}

    def keep(request: Request, samples: list[Completion]) -> None:
        found[request.request_id] = samples

    asyncio.run(complete(server.url, "policy", requests, sampling, max_in_flight=4, on_result=keep, alive=server.check))
    return found


def gone(processes: list[int], within_s: float = 15) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(alive(process) for process in processes):
            return True
        time.sleep(0.1)
    return False


def alive(process: int) -> bool:
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_prompts_log_probabilities_are_those_of_transformers(policy: Path, served: VllmServer) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 5, 30], list(range(5, 60))]
    sampling = Sampling(n=1, temperature=0, max_tokens=1, prompt_log_probs=True)
    found = sample(served, [Request(str(n), ids, None) for n, ids in enumerate(prompts)], sampling)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    for number, ids in enumerate(prompts):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        assert found[str(number)][0].prompt_log_probs == pytest.approx(expected, abs=1e-3)


def test_the_first_tokens_log_probabilities_are_those_of_transformers(policy: Path, served: VllmServer) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompts, wanted = [[5, 6, 7, 8, 9, 10, 11], [12, 5, 30]], (7, 33, 12)
    sampling = Sampling(n=1, temperature=0, max_tokens=1, first_log_probs=wanted)
    found = sample(served, [Request(str(n), ids, None) for n, ids in enumerate(prompts)], sampling)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    for number, ids in enumerate(prompts):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[list(wanted)].tolist()
        assert found[str(number)][0].first_log_probs == pytest.approx(expected, abs=1e-3)


def test_a_missing_model_is_reported_before_any_start(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"config\.json does not exist"):
        VllmServer(tmp_path / "none", OPTIONS, tmp_path / "log").start()
    assert not (tmp_path / "log").exists()


def test_a_server_that_is_not_started_says_so(tmp_path: Path) -> None:
    server = VllmServer(tmp_path, OPTIONS, tmp_path / "log")
    with pytest.raises(ServerError, match="not running"):
        server.check()
    server.stop()


def test_a_server_that_another_thread_stops_meanwhile_says_so(tmp_path: Path) -> None:
    """This happens when one shard finds it dead and stops it while another shard checks it."""
    server = VllmServer(tmp_path, OPTIONS, tmp_path / "log")

    class Ended:
        def poll(self) -> int:
            server.stop()
            return 137

        def stop(self) -> None: ...

        def tail(self, lines: int = 40) -> str:
            return "last words"

    server._process = Ended()  # type: ignore[assignment]
    with pytest.raises(ServerError, match=r"(?s)ended with status 137.*last words"):
        server.check()
    with pytest.raises(ServerError, match="is not running"):
        server.check()


def test_options_become_a_command_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    options = OPTIONS.model_copy(update={"extra_args": ("--max-num-batched-tokens", "512"), "enforce_eager": False})
    command = VllmServer(tmp_path, options, tmp_path / "log", runner="pooling").command()
    assert command[-2:] == ["--max-num-batched-tokens", "512"]
    assert "--enforce-eager" not in command
    assert command[command.index("--runner") + 1] == "pooling"
    assert command[command.index("--kv-cache-memory-bytes") + 1] == str(2**28)
    assert not any("hf_secret" in part for part in command)


@pytest.mark.parametrize(
    ("set_to", "build", "gpus", "capability", "cpu_bf16", "quantised", "served_in"),
    [
        (None, "cpu", 0, 0.0, False, None, "float32"),
        (None, "cpu", 0, 0.0, False, {"quant_method": "awq"}, "bfloat16"),
        (None, "cpu", 0, 0.0, True, None, "bfloat16"),
        (None, "gpu", 1, 7.5, True, None, "float16"),
        (None, "gpu", 1, 9.0, False, None, "bfloat16"),
        (None, "gpu", 1, 7.5, True, {"quant_method": "awq"}, "float16"),
        (None, "gpu", 0, 0.0, False, None, "bfloat16"),  # GPUs that nvidia-smi does not list
        ("bfloat16", "cpu", 0, 0.0, False, None, "bfloat16"),
        ("auto", "gpu", 1, 7.5, False, None, "auto"),
    ],
)
def test_a_model_is_served_in_what_its_own_devices_compute_in(
    set_to: Any,
    build: str,
    gpus: int,
    capability: float,
    cpu_bf16: bool,
    quantised: Any,
    served_in: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    machine = Machine(gpus, capability, cpu_bf16, liger=False)
    monkeypatch.setattr(vllm_server, "runs_on_cpu", lambda: build == "cpu")
    monkeypatch.setattr(vllm_server, "machine_in", lambda environment: seen.append(environment) or machine)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantised}))
    options = ServerOptions(max_model_len=9, dtype=set_to)
    command = VllmServer(tmp_path, options, tmp_path / "log", devices="1").command()
    assert command[command.index("--dtype") + 1] == served_in
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["1"] * (set_to is None)


def test_only_a_server_as_vllms_can_take_the_port_that_is_held_for_it() -> None:
    with vllm_server._held_port("127.0.0.1") as port:
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)):  # with SO_REUSEADDR
            socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize(
    ("cpu", "runner", "threads"), [(True, "generate", "3"), (True, "pooling", "4"), (False, "pooling", None)]
)
def test_on_cpu_blocks_are_small_and_scoring_takes_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: bool, runner: Any, threads: str | None
) -> None:
    monkeypatch.setattr(vllm_server, "runs_on_cpu", lambda: cpu)
    monkeypatch.setattr(vllm_server.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = VllmServer(tmp_path, OPTIONS, tmp_path / "log", runner=runner).command()
    assert ("--block-size" in command) is cpu
    assert vllm_server._environment(runner).get("OMP_NUM_THREADS") == threads


@pytest.mark.slow
def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(BadInput, match=r"config\.json is not JSON .*: fetch the file again"):
        VllmServer(tmp_path, OPTIONS, tmp_path / "server.log").start()
    (tmp_path / "config.json").write_text('{"model_type": "of nobody"}')
    with pytest.raises(ServerError, match=r"(?s)ended with status 1.*log: .*server\.log.*Error"):
        VllmServer(tmp_path, OPTIONS, tmp_path / "server.log").start()


@pytest.mark.slow
def test_a_sample_ends_with_the_stop_string_that_ended_it(served: VllmServer) -> None:
    requests = [Request("r", (1, 4, 8, 5), None)]
    free = sample(served, requests, Sampling(n=1, max_tokens=12, temperature=0))["r"][0].text
    word = free.split()[1]
    (stopped,) = sample(served, requests, Sampling(n=1, max_tokens=12, temperature=0, stop=(word,)))["r"]
    assert stopped.text == free[: free.index(word) + len(word)]
    assert stopped.finish_reason == "stop"


@pytest.mark.slow
def test_samples_carry_ids_counts_and_reasons(served: VllmServer) -> None:
    requests = [Request(f"r{i}", (1, 4, 8 + i, 5), None) for i in range(6)]
    found = sample(served, requests, Sampling(n=3, max_tokens=12))
    assert sorted(found) == [f"r{i}" for i in range(6)]
    for samples in found.values():
        assert len(samples) == 3
        for one in samples:
            assert 0 < one.tokens <= 12
            assert one.finish_reason == ("stop" if one.token_ids[-1] == 2 else "length")
            assert "<eos>" not in one.text
    greedy = Sampling(n=1, max_tokens=12, temperature=0)
    assert sample(served, requests[:1], greedy) == sample(served, requests[:1], greedy)


@pytest.mark.slow
def test_special_tokens_in_a_sample_stay_visible(served: VllmServer) -> None:
    samples = sample(served, [Request("r", (1, 4, 8, 5), None)], Sampling(n=32, max_tokens=60))["r"]
    special = [one for one in samples if {4, 5} & set(one.token_ids)]
    assert special
    assert all("<|user|>" in one.text or "<|assistant|>" in one.text for one in special)


@pytest.mark.slow
def test_a_prompt_over_the_length_names_both_lengths(served: VllmServer) -> None:
    with pytest.raises(CompletionError, match=r"request long \(200 prompt tokens.*128"):
        sample(served, [Request("long", [8] * 200, None)], Sampling(n=1, max_tokens=5))


@pytest.mark.slow
def test_scores_equal_those_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = make_model(tmp_path / "reward", reward=True)
    inputs = [[1, 4, *range(8, 9 + i), 5] for i in range(40)]
    with VllmServer(folder, OPTIONS, tmp_path / "server.log", runner="pooling", served_name="rm") as server:
        scores = asyncio.run(classify(server.url, "rm", inputs, max_in_flight=4, alive=server.check, batch_size=8))
        processes = [server.pid, *_descendants(server.pid)]
    assert gone(processes)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits.item() for ids in inputs]
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_a_server_that_stands_still_for_a_while_cuts_no_connection(
    served: VllmServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a machine that is busy, or paused, for longer than vLLM's default keeps an idle connection open."""
    below = _descendants(served.pid)
    payload = {"model": "policy", "prompt": [1, 4, 8, 5], "max_tokens": 3}

    async def run() -> int:
        async with Client(served.url, max_in_flight=8, alive=served.check) as client:

            async def ask() -> list[dict[str, Any]]:
                return await asyncio.gather(*(client.post("/v1/completions", payload, "r") for _ in range(8)))

            await ask()
            for process in below:
                os.kill(process, signal.SIGSTOP)
            requests = asyncio.ensure_future(ask())  # on the same connections
            await asyncio.sleep(6)
            for process in below:
                os.kill(process, signal.SIGCONT)
            return len(await requests)

    with caplog.at_level("WARNING", logger="infra.serving.completions"):
        assert asyncio.run(run()) == 8
    assert caplog.messages == []


@pytest.mark.slow
def test_a_server_killed_midway_is_an_error_with_its_log(policy: Path, served: VllmServer) -> None:
    """The last test that uses `served`, since it kills it."""
    below = _descendants(served.pid)
    requests = [Request(str(i), (1, 4, 8, 5), None) for i in range(2000)]

    async def run() -> None:
        work = complete(
            served.url,
            "policy",
            requests,
            Sampling(n=8, max_tokens=100),
            max_in_flight=8,
            on_result=lambda _request, _samples: None,
            alive=served.check,
        )
        task = asyncio.ensure_future(work)
        await asyncio.sleep(1)
        os.kill(below[0], signal.SIGKILL)
        await task

    with pytest.raises(ServerError, match=r"(?s)ended with status 137.*its last lines:\n.*vllm") as error:
        asyncio.run(run())
    assert error.value.killed
    assert gone(below)


GUARDED = """
import sys, time
from pathlib import Path
from infra.processes.watchdog import GuardedProcess
child = "import os,subprocess,sys,time; subprocess.Popen(['sleep','300'],start_new_session=True); time.sleep(300)"
process = GuardedProcess([sys.executable, "-c", child], log_path=Path(sys.argv[1]))
print(process.pid, flush=True)
time.sleep(300)
"""


def test_kill_9_of_the_parent_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GUARDED, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        watchdog = int(parent.stdout.readline())
        deadline = time.monotonic() + 10
        while len(_descendants(watchdog)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        processes = [watchdog, *_descendants(watchdog)]
        assert len(processes) == 3
        parent.kill()
    assert gone(processes)
