"""STILL-2 killed in each of its three parts: the same command goes on, and asks no finished request again."""

from __future__ import annotations

import json
import re
import signal
from collections import defaultdict
from pathlib import Path

import pytest
from runs import ended, started, wait_for
from small import command_lines, environment
from still2_small import SMALL, lessons

from infra.operations.inventory import artifacts, problems
from infra.settings import Settings
from infra.store.manifest import ref_of
from infra.store.store import Store
from infra.store.tables import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(2400)]
KILLED_IN = ("sft-imitated-whole", "continued", "rollouts-round-1-2", "sft-1")
"""Steps of imitation, exploration and self-improvement: two sample, and two train."""


def begun(log: Path, step: str) -> bool:
    return re.search(rf" {step}/\w+: making it", log.read_text()) is not None


def finished_requests(place: Path, step: str) -> dict[str, list[str]]:
    """The sampled texts in the ledgers of a step, by request."""
    found: dict[str, list[str]] = {}
    for path in (place / "work" / "ledgers").glob(f"{step}-*.jsonl"):
        for line in path.read_text().splitlines(keepends=True)[1:]:
            if line.endswith("\n"):
                held = json.loads(line)
                found[held["id"]] = [sample["text"] for sample in held["record"]["samples"]]
    return found


def test_a_run_killed_in_each_part_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    log, sources = tmp_path / "log.txt", json.dumps(lessons(tmp_path))
    words = ["-m", "flows", "still2/nano"]
    few = (f"config.{name}.in_flight=4" for name in ("imitate.write_solutions", "explore.generate"))
    for assignment in (*SMALL, f"config.imitate.sources={sources}", *few):  # a step can be killed between two requests
        words += ["--set", assignment]
    kept: dict[str, dict[str, list[str]]] = {}
    for step in KILLED_IN:
        run = started(words, log, environment(tmp_path))
        sampling = not step.startswith("sft")

        def reached(step: str = step, sampling: bool = sampling) -> bool:
            assert run.poll() is None, log.read_text()[-6000:]  # noqa: B023
            return begun(log, step) and (not sampling or bool(finished_requests(tmp_path, step)))

        wait_for(reached, 900)
        run.send_signal(signal.SIGKILL)
        run.wait()
        kept[step] = finished_requests(tmp_path, step)
        mine = [str(tmp_path / "work"), str(tmp_path / "store")]
        wait_for(lambda: not command_lines(mine), 60)  # noqa: B023
    run = started(words, log, environment(tmp_path))
    assert ended(run, 900) == 0, log.read_text()[-6000:]

    assert kept["continued"]
    assert kept["rollouts-round-1-2"]
    store = Store.open(Settings(store=str(tmp_path / "store")))
    found = list(artifacts(store))
    assert [line for each in found for line in problems(store, each)] == []
    texts: dict[str, list[str]] = defaultdict(list)
    for each in found:
        if each.manifest and each.manifest.step == "rollouts-round-1-2":
            for row in read_rows(store, ref_of(store, each.manifest), ["query_id", "text"]):
                texts[row["query_id"]].append(row["text"])
    assert {name: texts[name] for name in kept["rollouts-round-1-2"]} == kept["rollouts-round-1-2"]
    made = re.findall(r" (\S+/\w+): making it$", log.read_text(), re.MULTILINE)
    assert {step.split("/")[0] for step in made} >= set(KILLED_IN)
    assert {step.split("/")[0] for step in made if made.count(step) > 1} <= set(KILLED_IN)
