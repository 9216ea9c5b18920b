"""Keys of progress artifacts, and no artifact outside of a task run; test_progress_in_flows has the rest."""

from __future__ import annotations

import threading

import pytest

from infra.steps.progress import artifact_key, progress


@pytest.mark.parametrize(
    ("step", "key"),
    [
        ("responses", "progress-responses"),
        ("answers-in-context-greedy", "progress-answers-in-context-greedy"),
        ("answers-My_Model.v2-", "progress-answers-my-model-v2"),
    ],
)
def test_keys_are_what_prefect_accepts(step, key):
    assert artifact_key(step) == key


def test_outside_of_a_task_run_nothing_is_drawn():
    def done() -> float:
        raise AssertionError("called although no progress is shown")

    before = threading.active_count()
    with progress("responses", done, 10, "requests", bar_s=0):
        assert threading.active_count() == before
