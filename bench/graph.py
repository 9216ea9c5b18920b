"""Measure the links in Prefect's run graph, and the time to submit shards: `python bench/graph.py [--shards 400]`.

One flow run samples in `--shards` shards that are all cache hits (their artifacts are written first), then filters
them. It runs twice against one temporary Prefect server: as the flows do it (the job is quoted, and the task runs of
its inputs are given as `wait_for`), and with Prefect's own search for dependencies in the arguments.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.testing.utilities import prefect_test_harness

import infra.steps.step
from bench.common import bench_parser, report, surroundings
from flows.stages.common import Common
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import sample
from infra.store.manifest import Provenance, Ref
from infra.store.schemas import EXAMPLES, QUERIES, RESPONSES
from infra.store.tables import write_table
from tasks.responses.filter import FilterConfig, filter_responses
from tasks.responses.generate import GenerateConfig, generate

SERVING: Any = {"policy": {"max_model_len": 64}, "reward": {"max_model_len": 64}}
CONFIG = GenerateConfig(request_seeds=False)  # vLLM for CPU cannot have them
MODEL = Ref(kind="model", step="imported", key="m", uri="", digest="m", rows=1)


class Nothing(dict[Any, Any]):
    """A dictionary that stays empty, so that no task run is given as a parent."""

    def update(self, *_: Any, **__: Any) -> None:
        """Ignore the items."""


def write_shards(run: Run, queries: Ref, shards: int) -> None:
    """Write the shards' tables, empty, under the keys that the flow will look up."""
    for shard in range(shards):
        call = {"config": CONFIG, "queries": queries, "model": MODEL, "shard": shard, "shards": shards}
        plan = generate.plan("responses", {**call, "servers": run.servers})
        write_table(run.store, plan.step, plan.key, RESPONSES, [], plan.provenance)


@flow(task_runner=TASK_RUNNER)
def sampling(shards: int) -> tuple[float, str]:
    """Submit all shards, wait for them, then filter. Returns the shards' seconds and the flow run's id."""
    with begin(Common(serving=SERVING)) as run:
        queries = write_table(run.store, "queries", "k", QUERIES, [], Provenance())
        examples = write_table(run.store, "examples", "k", EXAMPLES, [], Provenance())
        write_shards(run, queries, shards)
        if infra.steps.step.quote is identity:
            run.task_runs = Nothing()
        began = time.perf_counter()
        responses = sample(run, "responses", CONFIG, queries, MODEL, shards=shards)
        seconds = time.perf_counter() - began
        given = {"responses": responses, "queries": queries, "examples": examples}
        run.do_shards(filter_responses, "filtered", 1, config=FilterConfig(), target="bolt", **given)
        return seconds, flow_run.id


def identity(value: Any) -> Any:
    """Replaces Prefect's `quote`, so that the argument is searched for dependencies."""
    return value


def links(run_id: str, tasks: int) -> int:
    """The links of a run's graph as Prefect serves it, read once all task runs have been recorded."""
    with get_client(sync_client=True) as client:
        for _ in range(120):
            nodes = client.request("GET", f"/flow_runs/{run_id}/graph-v2").json()["nodes"]
            if len(nodes) == tasks and all(node["state_type"] == "COMPLETED" for _, node in nodes):
                return sum(len(node["parents"]) for _, node in nodes)
            time.sleep(1)
    raise RuntimeError(f"{len(nodes)} of {tasks} task runs were recorded in two minutes")


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--shards", type=int, default=400)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, Any] = {"shards": given.shards, "ours": {"seconds": []}, "searched": {"seconds": []}}
    wrappers = {"searched": identity, "ours": infra.steps.step.quote}
    with tempfile.TemporaryDirectory() as folder, prefect_test_harness(server_startup_timeout=120):
        for number in range(given.times):
            for name, wrapper in wrappers.items():
                os.environ["BOLT_STORE"], os.environ["BOLT_WORK_DIR"] = f"{folder}/{name}-{number}", f"{folder}/work"
                infra.steps.step.quote = wrapper  # type: ignore[misc,assignment]
                seconds, run_id = sampling(given.shards)
                found[name]["seconds"].append(round(seconds, 2))
                found[name]["links"] = links(run_id, given.shards + 1)
    ratio = statistics.median(found["ours"]["seconds"]) / statistics.median(found["searched"]["seconds"])
    report({**found, "ratio": round(ratio, 2), **surroundings()}, given.out)


if __name__ == "__main__":
    main()
