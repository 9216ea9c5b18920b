"""Measure how busy tree search keeps an engine: trees that wait for no other, against all trees in step.

    python bench/search_in_step.py [--problems 64] [--tokens 6000]

The step `search_problems` (strategy `mctsg`, rewards by a formula) asks one simulated server (bench/simulated.py) that
decodes 64 samples at a time, a token of each every 10 ms: steps of some 20 tokens and solutions of some 200. `ideal` is
what it decodes when all places are taken. In step: each request of a turn is awaited before the next turn of any tree,
as this project did at first. In eights: eight trees share their HTTP requests and wait for each other (requests without
seeds). Alone: no tree waits for another one (requests with seeds).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import bench_parser, report, surroundings
from bench.search import NANO, Ours, fixed_scores, speed
from bench.servers import SimulatedServer
from bench.serving import imported
from bench.simulated import Simulated
from infra.serving.pool import Pool
from infra.serving.servers import Servers
from infra.store.models import import_model
from tasks.search.ask import SearchSampling

SLOTS, STEP_MS, TOKENS = 64, 10.0, 200
ALL = 10**9


class SimulatedServers:
    """What a search asks of `infra.serving.servers.Servers`."""

    def __init__(self, pool: Pool, work_dir: Path) -> None:
        self.pool, self.work_dir = pool, work_dir

    def policies(self, _model: object) -> Pool:
        return self.pool

    def engine(self, _role: str) -> str:
        return "simulated"


def searched(given: argparse.Namespace, folder: Path, name: str, *, seeds: bool, in_step: int | None) -> dict[str, Any]:
    """Tokens per second of a search on a new simulated server."""
    settings, store, policy = imported(NANO / "models" / "instruct", folder / name)
    judge = import_model(store, (NANO / "models" / "reward").resolve(), "reward")
    sampling = SearchSampling(step_tokens=200, solution_tokens=2000, request_seeds=seeds, in_flight=64)
    with ExitStack() as patches:
        simulated = patches.enter_context(Simulated(1, SLOTS, STEP_MS, TOKENS))
        servers = SimulatedServers(Pool([SimulatedServer(url) for url in simulated.urls]), folder / name)
        patches.enter_context(patch("tasks.search.search_problems.discriminative", fixed_scores))
        if in_step is not None:
            patches.enter_context(patch("tasks.search.search_problems.STEPS_TOGETHER", in_step))
        ours = Ours(given, settings, cast(Servers, servers), policy, judge, sampling)
        return speed(*ours.searched(name, given.shards))


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=6_000, help="budget per problem")
    parser.add_argument("--shards", type=int, default=1)
    given = parser.parse_args()
    before = surroundings()
    with tempfile.TemporaryDirectory(prefix="bench-search-") as folder:
        found = {
            "in step": searched(given, Path(folder), "in-step", seeds=False, in_step=ALL),
            "in eights": searched(given, Path(folder), "in-eights", seeds=False, in_step=None),
            "alone": searched(given, Path(folder), "alone", seeds=True, in_step=None),
        }
    ideal = SLOTS * 1000 / STEP_MS
    for each in found.values():
        each["of_ideal"] = round(each["tokens_per_s"] / ideal, 3)
    sizes = {"problems": given.problems, "tokens": given.tokens, "shards": given.shards}
    report({"bench": "search-in-step", **sizes, "ideal": ideal, "found": found} | before, given.out)


if __name__ == "__main__":
    main()
