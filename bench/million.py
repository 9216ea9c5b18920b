"""Measure the flow process as stage 1 grows: rows per second, peak memory, and what Prefect keeps of the run.

    python -m bench.million [--responses 100000 1000000] [--tokens 200] [--s3] [--folder DIR] [--out FILE.jsonl]

The steps of stage 1 are those of `bootstrap`, Prefect tasks of a flow run with their default settings: sampling with
in-context examples into ledgers, the filter, the rewards, the selection. What they ask is **simulated**
(bench/simulated.py): one server that answers at once with well-formed responses of English words, and gives random
rewards. It has a process of its own, and takes about one of the machine's cores at times, so that rows per second are a
lower bound. The tokenizers are those of the nano world's models, which make a token of each word.

Each size has a process of its own, with its own Prefect server, store and ledgers. Its peak memory is the highest
resident memory of that process (VmHWM) in any step, in MiB; children are left out: Prefect's server, the simulated one.
`cpu_s` are the CPU seconds of all its threads. The size of Prefect's database is that after its server has ended. With
`--s3` the store is a moto server, and `store_requests` counts what is sent to it. Moto keeps all of it in memory, so
that only small sizes fit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from prefect import flow
from prefect.client.orchestration import get_client

from bench.common import ROOT, bench_parser, report, surroundings
from bench.memory import resident
from bench.servers import SimulatedServer
from bench.simulated import NAME, Simulated, english
from cot_formats.responses import LongFormat
from flows.stages.common import Common, Estimates
from flows.stages.run import TASK_RUNNER, begin
from flows.stages.sampling import sample, scored
from infra.serving.servers import Servers, ServingConfig
from infra.serving.vllm_server import ServerOptions
from infra.settings import Settings
from infra.store.manifest import Provenance, expect
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, write_table
from tasks.curation.choose import choose_examples
from tasks.examples.read import ExamplesConfig
from tasks.responses.filter import FilterConfig, filter_responses
from tasks.responses.generate import GenerateConfig
from tasks.responses.prompt import PromptConfig
from tasks.rewards.score import ScoreConfig
from tasks.rewards.select import SelectConfig, select

NANO = ROOT / "nano"
FORMAT: LongFormat = "bolt"
SAMPLES = 8  # responses per query
QUERY_WORDS = (10, 40)
SLOTS = 4096  # more than are in flight, so that no sample waits
SENT = Counter[str]()
"""Requests that this process has sent to S3, by name."""
STEPS = ("responses", "filtered", "scores", "longcot")


def made_up(count: int) -> Iterator[dict[str, Any]]:
    """Rows of `queries`: random English words."""
    rng, words = random.Random(0), english()
    for number in range(count):
        text = " ".join(rng.choices(words, k=rng.randint(*QUERY_WORDS)))
        yield {"query_id": f"{number:016x}", "query": text, "source": "bench", "source_row": number}


@contextmanager
def measured(found: dict[str, Any], name: str) -> Iterator[None]:
    """Add the seconds, CPU seconds and peak memory (MiB) of the block, which is a step, to `found`."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    sent, began, cpu = SENT.copy(), time.perf_counter(), time.process_time()
    yield
    taken = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    found[name] = {each: round(value, 2) for each, value in taken.items()}
    found[name]["peak_mib"] = resident("VmHWM") // 2**20
    found[name]["store_requests"] = dict(SENT - sent)


def counting(event_name: str, **_: Any) -> None:
    """Count an answer of S3 by the request's name, such as `PutObject`."""
    SENT[event_name.rpartition(".")[2]] += 1


@flow(task_runner=TASK_RUNNER)
def stage_1(url: str, tokens: int, shards: int) -> dict[str, Any]:
    """Stage 1 on the simulated server at `url`. Returns what was measured, by step, and the memory at its start."""
    found: dict[str, Any] = {}
    serving = ServingConfig(
        policy=ServerOptions(max_model_len=1024),  # the nano world's; the simulated server takes any length
        reward=ServerOptions(max_model_len=512),
        policy_urls=(url,),
        policy_name=NAME,
    )
    estimates = Estimates(tokens_per_response=tokens)
    scorer = patch.object(Servers, "reward", lambda _servers, _model: SimulatedServer(url, NAME))
    with begin(Common(serving=serving, estimates=estimates)) as run, scorer:
        queries = run.table("queries/made-up")
        policy = run.model(str(NANO / "models" / "instruct"), formats=(FORMAT,))
        reward_model = run.model(str(NANO / "models" / "reward"), role="reward")
        examples = run.do(choose_examples, "examples", config=ExamplesConfig())
        start_mib = resident("VmRSS") // 2**20
        with measured(found, "responses"):
            config = GenerateConfig(samples=SAMPLES, max_tokens=4 * tokens)
            shown: dict[str, Any] = {"prompt": PromptConfig(), "examples": examples}
            responses = sample(run, "responses", config, queries, policy, shards=shards, **shown)
        with measured(found, "filtered"):
            given: dict[str, Any] = {"responses": responses, "queries": queries, "examples": examples}
            given |= {"config": FilterConfig(), "target": FORMAT}
            filtered = run.do_shards(filter_responses, "filtered", shards, **given)
        with measured(found, "scores"):
            scores = scored(run, "scores", ScoreConfig(), filtered, queries, reward_model, shards=shards)
        with measured(found, "longcot"):
            given = {"responses": filtered, "scores": scores, "queries": queries}
            longcot = run.do(select, "longcot", config=SelectConfig(), **given)
        made = dict(zip(STEPS, (responses, filtered, [scores], [longcot]), strict=True))
        for name, refs in made.items():
            found[name]["rows"] = sum(ref.rows for ref in refs)
            found[name]["store_mb"] = round(sum(expect(run.store, ref).bytes for ref in refs) / 1e6, 1)
    return {"start_mib": start_mib, "steps": found}


def task_runs(expected: int) -> int:
    """The task runs that Prefect's server knows of, once it has recorded the end of as many as are expected."""
    ended = {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    with get_client(sync_client=True) as client:
        for _ in range(120):
            if client.request("POST", "/task_runs/count", json=ended).json() >= expected:
                return int(client.request("POST", "/task_runs/count", json={}).json())
            time.sleep(1)
    raise RuntimeError(f"fewer than {expected} task runs were recorded in two minutes")


def work(given: argparse.Namespace) -> dict[str, Any]:
    """Measure one size in this process; the store and Prefect's home are those of the environment."""
    rows = batched(made_up(given.worker // SAMPLES))
    with patch("infra.store.s3._tell_of_failure", counting), Simulated(1, SLOTS, 0, given.tokens, FORMAT) as servers:
        write_table(Store.open(Settings.load()), "queries", "made-up", QUERIES, rows, Provenance())
        found = stage_1(servers.urls[0], given.tokens, given.shards)
    return {**found, "task_runs": task_runs(3 * given.shards + 3)}


def measure(responses: int, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure one size in a process of its own."""
    from bench.rerun import in_s3, s3_server  # here, since moto would count in the memory of that process

    home = folder / "prefect"
    variables = {
        "BOLT_STORE": str(folder / "store"),
        "BOLT_WORK_DIR": str(folder / "work"),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "infra,tasks",  # as the deployments do: log lines go to the database
    }
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "BOLT_", "AWS_"))}
    options = {"--tokens": given.tokens, "--shards": given.shards}
    command = [sys.executable, __file__, f"--worker={responses}", *(f"{name}={each}" for name, each in options.items())]
    with s3_server() if given.s3 else nullcontext() as url:
        variables |= in_s3(url) if url else {}
        done = subprocess.run(command, cwd=ROOT, env=ours | variables, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    steps = found["steps"].values()
    seconds, cpu_s = (sum(step[name] for step in steps) for name in ("seconds", "cpu_s"))
    return {
        "responses": responses,
        **found,
        "seconds": round(seconds, 1),
        "rows_per_s": round(responses / seconds),
        "cpu_s": round(cpu_s, 1),
        "peak_mib": max(step["peak_mib"] for step in steps),
        "database_mib": round(sum(path.stat().st_size for path in home.glob("prefect.db*")) / 2**20, 2),
    }


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--responses", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes, ascending")
    parser.add_argument("--tokens", type=int, default=200, help="mean length of a response")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--s3", action="store_true", help="keep the store in S3, and count the requests")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(given)))
        return
    before, sizes = surroundings(), list[dict[str, Any]]()
    for responses in given.responses:
        with tempfile.TemporaryDirectory(prefix="bench-million-", dir=given.folder) as folder:
            sizes.append(measure(responses, given, Path(folder)))
    options = {"simulated": True, "tokens": given.tokens, "samples": SAMPLES, "shards": given.shards}
    ratio = round(sizes[-1]["peak_mib"] / sizes[0]["peak_mib"], 3)
    report({"bench": "million", **options, "sizes": sizes, "peak_ratio": ratio} | before, given.out)
    print(f"\n{'responses':>10}{'step':>12}{'seconds':>10}{'rows/s':>8}{'CPU s':>8}{'peak, MiB':>11}{'store, MB':>11}")
    for size in sizes:
        for name, step in size["steps"].items():
            speed = round(size["responses"] / step["seconds"])
            figures = (
                f"{step['seconds']:10.1f}{speed:8,}{step['cpu_s']:8.1f}{step['peak_mib']:11,}{step['store_mb']:11,}"
            )
            print(f"{size['responses']:10,}{name:>12}{figures}")


if __name__ == "__main__":
    main()
