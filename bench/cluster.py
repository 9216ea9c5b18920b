"""Measure `make demo CLUSTER=ray`, two Ray nodes on this machine that train together, against `make demo`.

    python bench/cluster.py [--preset bolt/nano] [--set ASSIGNMENT]... [--out FILE.jsonl]
    python bench/cluster.py --mine 1000000 [--shards 8] [--out FILE.jsonl]

Each runs once, with a store and a Prefect of its own. The seconds are those in steps. The artifacts of
steps that sample nothing and train nothing must have the same digests; sampled figures are compared by their intervals.

`--mine ROWS` mines that many made-up queries, those of bench/mining.py, in place of the demo: without Ray in one shard,
as mining is by default, on Ray in `--shards`. The tables that are not made in shards must have the same digests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, report, surroundings
from bench.mining import texts, written
from infra.settings import Settings
from infra.store.parts import find
from infra.store.store import Store

EXACT = (
    "collected-",
    "cleaned",
    "distinct",
    "held-out",
    "contaminated",
    "decontaminated",
    "queries",
    "problems",
    "examples",
)
"""How the names of steps begin whose rows depend on files alone."""
IN_SHARDS = ("cleaned", "contaminated")
STEP = re.compile(r" - (\S+) +([\d.]+) s  done +(\w+)  \d+ rows")
"""The log line at the end of a step: its name, seconds and key."""


def run(preset: str, assignments: list[str], folder: Path, *, ray: bool) -> tuple[float, dict[str, str], str]:
    """One run. Returns its seconds in steps, the digests of its exact artifacts by step, and what it printed.

    If it fails, the bench ends with the end of its log.
    """
    (folder / "prefect").mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BOLT_", "AWS_", "PREFECT_"))}
    own = {
        "BOLT_STORE": str(folder / "store"),
        "BOLT_WORK_DIR": str(folder / "work"),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    on_ray = [sys.executable, "-m", "infra.cluster.local", "--nodes", "2"] if ray else []
    more = ["config.cluster=ray", "config.ray.training_nodes=2"] if ray else []
    sets = [part for each in [*assignments, *more] for part in ("--set", each)]
    command = [*on_ray, sys.executable, "-m", "flows", preset, *sets]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, env=kept | own, stdout=subprocess.PIPE, stderr=log, text=True)
    if done.returncode:
        sys.exit((folder / "log").read_text()[-20_000:])
    store, seconds, digests = Store.open(Settings(store=str(folder / "store"))), 0.0, {}
    for step, taken, key in STEP.findall((folder / "log").read_text()):
        seconds += float(taken)
        if step.startswith(EXACT) and (made := find(store, step, key)):
            digests[step] = made.digest
    return seconds, digests, done.stdout


def accuracies(*printed: str) -> dict[str, list[list[float]]]:
    """Accuracy with its 95 % interval by stage, in each of the runs that printed the paths of their summaries."""
    found: dict[str, list[list[float]]] = {}
    for each in printed:
        summary: dict[str, Any] = json.loads(Path(each.strip().splitlines()[-1]).read_text())
        for stage in summary["stages"]:
            row = [stage[name] for name in ("accuracy", "accuracy_low", "accuracy_high")]
            found.setdefault(stage["name"], []).append(row)
    return found


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--preset", default="bolt/nano")
    parser.add_argument("--set", action="append", default=[], metavar="ASSIGNMENT", help="as for `python -m flows`")
    parser.add_argument("--mine", type=int, metavar="ROWS", help="mine made-up queries in place of the demo")
    parser.add_argument("--shards", type=int, default=8, help="of `--mine` on Ray")
    given = parser.parse_args()
    found = surroundings()
    with tempfile.TemporaryDirectory(prefix="bolt-bench-") as place:
        preset, sets = given.preset, given.set
        if given.mine:
            written(path := Path(place, "queries.jsonl"), texts(given.mine, ["a problem of its own"]))
            preset, sets = "mine/nano", [f'config.queries.sources=[{{"path": "{path}"}}]', "config.queries.clean={}"]
        alone, exact, printed = run(preset, sets, Path(place, "alone"), ray=False)
        sets = [*sets, f"config.queries.shards={given.shards}"] if given.mine else sets
        on_ray, exact_on_ray, printed_on_ray = run(preset, sets, Path(place, "ray"), ray=True)
        for step in IN_SHARDS if given.mine else ():
            del exact[step], exact_on_ray[step]
        accuracy = {} if given.mine else {"accuracy_alone_and_on_ray": accuracies(printed, printed_on_ray)}
    report(
        {
            "bench": "cluster",
            **found,
            "seconds_alone": round(alone, 1),
            "seconds_on_ray": round(on_ray, 1),
            "overhead_percent": round(100 * (on_ray / alone - 1), 1),
            "exact_artifacts": len(exact),
            "equal": exact == exact_on_ray,
            **accuracy,
        },
        given.out,
    )


if __name__ == "__main__":
    main()
