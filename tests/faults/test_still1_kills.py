"""STILL-1 and a search killed in each of their parts: the same command goes on, and asks no finished request again."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import ended, started, wait_for
from small import command_lines, environment
from still1_small import SMALL

from infra.operations.inventory import artifacts, problems
from infra.settings import Settings
from infra.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(2400)]
KILLED_IN = ("responses-round-1", "sft-reward-1", "judged-1", "dpo-1")
"""Steps that sample, train the reward model, judge, and train the policy."""


def finished(place: Path, step: str) -> dict[str, Any]:
    """The records in the ledgers of a step, by request."""
    found: dict[str, Any] = {}
    for path in (place / "work" / "ledgers").glob(f"{step}-*.jsonl"):
        for line in path.read_text().splitlines(keepends=True)[1:]:
            if line.endswith("\n"):
                held = json.loads(line)
                found[held["id"]] = held["record"]
    return found


def killed(place: Path, words: list[str], log: Path, reached: Callable[[], bool]) -> None:
    """Run a flow until it has `reached` something, and kill it."""
    run = started(words, log, environment(place))

    def there() -> bool:
        assert run.poll() is None, log.read_text()[-6000:]
        return reached()

    wait_for(there, 900)
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_for(lambda: not command_lines([str(place / "work"), str(place / "store")]), 60)


def test_a_run_killed_in_each_part_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    words = ["-m", "flows", "still1/nano"]
    # Few requests at a time, so that a step can be killed between two.
    few = (f"config.improve.{name}.in_flight=4" for name in ("generate", "judge"))
    for assignment in (*SMALL, *few):
        words += ["--set", assignment]
    for step in KILLED_IN:
        begun = re.compile(rf" {step}/\w+: making it")
        trains = step.startswith(("sft", "dpo"))
        killed(
            tmp_path,
            words,
            log,
            lambda: bool(begun.search(log.read_text())) and (trains or bool(finished(tmp_path, step))),  # noqa: B023
        )
    assert ended(started(words, log, environment(tmp_path)), 900) == 0, log.read_text()[-6000:]
    store = Store.open(Settings(store=str(tmp_path / "store")))
    found = list(artifacts(store))
    assert [line for each in found for line in problems(store, each)] == []
    made = re.findall(r" (\S+/\w+): making it$", log.read_text(), re.MULTILINE)
    assert {step.split("/")[0] for step in made} >= set(KILLED_IN)
    assert {step.split("/")[0] for step in made if made.count(step) > 1} <= set(KILLED_IN)

    keys = {each.manifest.step: each.manifest.key for each in found if each.manifest}
    search = ["-m", "flows", "search/nano", "--set", f"config.model=dpo-1/{keys['dpo-1']}"]
    search += ["--set", f"config.reward_model=sft-reward-1/{keys['sft-reward-1']}"]
    search += ["--set", "config.serving.policy_servers=1", "--set", "config.problems.draw.limit=20"]
    search += ["--set", 'config.searches=[{"name": "mctsg", "search": {"tokens": 400}}]']
    search += ["--set", "config.sampling.in_flight=4"]
    kept: dict[str, Any] = {}
    for _ in range(10):
        known = len(kept)
        killed(tmp_path, search, log, lambda: len(finished(tmp_path, "search-mctsg")) > known + 20)  # noqa: B023
        now = finished(tmp_path, "search-mctsg")
        assert {name: now[name] for name in kept} == kept
        kept = now
    assert ended(started(search, log, environment(tmp_path)), 900) == 0, log.read_text()[-6000:]
    assert log.read_text().count("search-mctsg/") >= 11
