"""Keys of progress artifacts, and no artifact outside of a task run; test_progress_in_flows has the rest."""

from __future__ import annotations

import math
import threading

import pytest

from infra.steps import progress as module
from infra.steps.progress import Gauge, artifact_key, progress


@pytest.mark.parametrize(
    ("step", "key"),
    [
        ("responses", "progress-responses"),
        ("answers-in-context-greedy", "progress-answers-in-context-greedy"),
        ("answers-My_Model.v2-", "progress-answers-my-model-v2"),
    ],
)
def test_keys_are_what_prefect_accepts(step, key):
    assert artifact_key("progress", step) == key


def test_outside_of_a_task_run_nothing_is_drawn():
    def done() -> float:
        raise AssertionError("called although no progress is shown")

    before = threading.active_count()
    with progress("responses", done, 10, "requests", bar_s=0):
        assert threading.active_count() == before


def test_the_rate_counts_from_when_the_total_is_known(monkeypatch):
    """A trainer first loads its model, and may go on from a checkpoint; then it says how many steps there will be."""
    clock, done, total = [0.0], [0], [math.inf]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    gauge = Gauge("sft", lambda: done[0], lambda: total[0], "steps", lambda: "loss 0.5" if done[0] > 40 else "")
    assert (gauge.text(), gauge.percent()) == ("sft: starting", 0.0)
    clock[0], done[0], total[0] = 600.0, 40, 100
    assert gauge.text() == "sft: 40 of 100 steps"
    clock[0], done[0] = 720.0, 60
    assert gauge.text() == "sft: 60 of 100 steps, 0.17 per second, about 4 min left, loss 0.5"
    assert gauge.percent() == 60.0
