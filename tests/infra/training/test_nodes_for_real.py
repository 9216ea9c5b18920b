"""Trainings over two machines, in two network namespaces: real agents, torchrun and ranks, some of them killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny import PROMPT, make_model
from two_hosts import TwoHosts, two_hosts

from infra.processes import torchrun
from infra.processes.torchrun import metrics_path
from infra.processes.watchdog import _descendants
from infra.training.config import SftConfig
from infra.training.signs import node_log

MODULE = """
import json, os, sys, time
from pathlib import Path
from infra.processes.watchdog import end_with_parent
end_with_parent()
todo, rank = json.load(open(sys.argv[1]))["todo"], os.environ["RANK"]
here = [Path(sys.argv[1]).with_name(f"here{n}") for n in range(int(os.environ["WORLD_SIZE"]))]
print(f"rank {rank} of {os.environ['WORLD_SIZE']} is here, local rank {os.environ['LOCAL_RANK']}", flush=True)
here[int(rank)].touch()
if todo == f"crash {rank}":
    while not all(path.exists() for path in here):
        time.sleep(0.05)
    raise RuntimeError(f"rank {rank} is out of luck")
if todo != "end":
    time.sleep(300)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "ranks_for_test.py").write_text(MODULE)
    with two_hosts(folder) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def living(pair: TwoHosts) -> dict[str, subprocess.Popen[str]]:
    """The agent of the second host: one process for all the trainings of these tests."""
    return {"agent": pair.agent()}


def awaited(found: Callable[[], Any], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def says(path: Path, text: str) -> Callable[[], bool]:
    return lambda: path.exists() and text in path.read_text()


def ended(process: subprocess.Popen[str], log: Path) -> str:
    """What the flow's side said at its end."""
    process.wait(120)
    return log.with_suffix(".out").read_text()


def gone(processes: list[int]) -> Callable[[], bool]:
    return lambda: not any(Path("/proc", str(pid)).exists() for pid in processes)


def sft_config(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir()
    completions = [f"<think> w{i} w{i + 1} </think> w{i + 2} w{3 * i}" for i in range(16)]
    pq.write_table(pa.table({"prompt": [PROMPT] * 16, "completion": completions}), folder / "rows.parquet")
    settings = {"model": model, "data": [folder / "rows.parquet"], "output": folder / "model", "epochs": 1}
    more = {"batch": 4, "micro_batch": 2, "max_length": 64, "learning_rate": 1e-3, "bf16": False}
    return {**settings, **more, **changes}


def losses(log: Path) -> list[float]:
    lines = [json.loads(line) for line in metrics_path(log).read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_two_machines_train_the_model_that_one_machine_trains(pair: TwoHosts, living, tmp_path: Path) -> None:
    model = make_model(tmp_path / "base")
    log = pair.folder / "sft" / "train.log"
    together = sft_config(log.parent, model)
    said = ended(pair.launch("infra.training.sft", together, log), log)
    assert said == "", said + log.read_text()[-2000:]
    alone = sft_config(tmp_path / "alone", model)
    torchrun.launch("infra.training.sft", SftConfig(**alone), ranks=2, log_path=tmp_path / "alone" / "train.log")
    assert losses(log) == pytest.approx(losses(tmp_path / "alone" / "train.log"), rel=1e-5)
    theirs, ours = (load_file(each["output"] / "model.safetensors") for each in (together, alone))
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_each_rank_has_its_place_and_a_crash_names_its_node(pair: TwoHosts, living) -> None:
    log = pair.folder / "crash" / "train.log"
    said = ended(pair.launch("ranks_for_test", {"todo": "crash 2"}, log, ranks=2), log)
    assert f"node 1 ({pair.addresses[1]}) ended with status 1; log: {node_log(log, 1)}" in said
    assert "cause: RuntimeError: rank 2 is out of luck" in said
    assert said.strip().endswith("RuntimeError: rank 2 is out of luck")
    assert "rank 0 of 4 is here, local rank 0" in log.read_text()
    assert "rank 3 of 4 is here, local rank 1" in node_log(log, 1).read_text()


@pytest.mark.faults
@pytest.mark.slow
def test_ranks_end_with_a_killed_flow_and_a_rerun_succeeds(pair: TwoHosts, living) -> None:
    log = pair.folder / "flow" / "train.log"
    flow = pair.launch("ranks_for_test", {"todo": "sleep"}, log)
    awaited(says(node_log(log, 1), "rank 1 of 2 is here"), "rank 1")
    ranks = _descendants(living["agent"].pid)
    assert len(ranks) >= 3  # watchdog, torchrun, rank
    flow.kill()
    flow.wait()
    awaited(gone(ranks), "the end of the agent's ranks", 30 + 10)
    assert pair.launch("ranks_for_test", {"todo": "end"}, log).wait(120) == 0


@pytest.mark.slow
def test_a_killed_agent_ends_the_training_with_its_last_lines_and_a_rerun_succeeds(pair: TwoHosts, living) -> None:
    log = pair.folder / "agent" / "train.log"
    flow = pair.launch("ranks_for_test", {"todo": "sleep"}, log)
    awaited(says(node_log(log, 1), "rank 1 of 2 is here"), "rank 1")
    ranks = _descendants(living["agent"].pid)
    living["agent"].send_signal(signal.SIGKILL)
    living["agent"].wait()
    said = ended(flow, log)
    assert f"node 1 ({pair.addresses[1]}) was lost: its agent (process {living['agent'].pid} on " in said
    assert f"was killed; log: {node_log(log, 1)}" in said
    assert said.strip().endswith("rank 1 of 2 is here, local rank 0")
    awaited(gone(ranks), "the end of its ranks")
    living["agent"] = pair.agent()
    assert pair.launch("ranks_for_test", {"todo": "end"}, log).wait(120) == 0
