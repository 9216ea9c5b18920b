"""Measure `make demo` on a Ray cluster of two nodes on this machine against the same without Ray.

    python bench/cluster.py [--preset bolt/nano] [--set ASSIGNMENT]... [--out FILE.jsonl]

Each runs once, with a store and a Prefect of its own. The seconds are those in steps. The artifacts of
steps that sample nothing and train nothing must have the same digests; sampled figures are compared by their intervals.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, report, surroundings
from infra.settings import Settings
from infra.store.parts import find
from infra.store.store import Store

EXACT = ("collected-", "cleaned", "contaminated", "decontaminated", "queries", "problems", "examples")
"""How the names of steps begin whose rows depend on files alone."""


def run(preset: str, assignments: list[str], folder: Path, *, ray: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """One run. Returns its summary, and the digests of its exact artifacts by STEP/KEY.

    Raises:
        subprocess.CalledProcessError: the run failed.
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
    sets = [part for each in [*assignments, *(["config.cluster=ray"] if ray else [])] for part in ("--set", each)]
    command = [*on_ray, sys.executable, "-m", "flows", preset, *sets]
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            command, cwd=ROOT, env=kept | own, stdout=subprocess.PIPE, stderr=log, text=True, check=True
        )
    summary: dict[str, Any] = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())
    store, digests = Store.open(Settings(store=str(folder / "store"))), {}
    for step in summary["steps"]:
        if step["name"].startswith(EXACT) and (made := find(store, step["name"], step["key"])):
            digests[f"{step['name']}/{step['key']}"] = made.digest
    return summary, digests


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--preset", default="bolt/nano")
    parser.add_argument("--set", action="append", default=[], metavar="ASSIGNMENT", help="as for `python -m flows`")
    given = parser.parse_args()
    found = surroundings()
    with tempfile.TemporaryDirectory(prefix="bolt-bench-") as place:
        alone, exact = run(given.preset, given.set, Path(place, "alone"), ray=False)
        on_ray, exact_on_ray = run(given.preset, given.set, Path(place, "ray"), ray=True)
    seconds = {
        name: sum(step["seconds"] for step in each["steps"]) for name, each in (("alone", alone), ("ray", on_ray))
    }
    accuracy = {
        stage["name"]: {
            name: [each["accuracy"], each["accuracy_low"], each["accuracy_high"]]
            for name, each in (("alone", stage), ("ray", other))
        }
        for stage, other in zip(alone["stages"], on_ray["stages"], strict=True)
    }
    report(
        {
            "bench": "cluster",
            **found,
            "seconds_alone": round(seconds["alone"], 1),
            "seconds_on_ray": round(seconds["ray"], 1),
            "overhead_percent": round(100 * (seconds["ray"] / seconds["alone"] - 1), 1),
            "exact_artifacts": len(exact),
            "equal": exact == exact_on_ray,
            "accuracy_with_interval": accuracy,
        },
        given.out,
    )


if __name__ == "__main__":
    main()
