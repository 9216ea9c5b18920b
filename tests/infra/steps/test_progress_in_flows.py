"""Progress artifacts of a real task run: updated meanwhile and at its end, and never disturbing the step."""

from __future__ import annotations

import logging
import time

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client

from infra.steps.progress import progress

pytestmark = pytest.mark.usefixtures("prefect_server")


@task
def working(step: str, shares: list[float], fails: bool = False) -> str:
    given = iter([*shares, *[shares[-1]] * 1000])
    with progress(step, lambda: next(given), 1, "shares", bar_s=0.05):
        time.sleep(0.6)
        if fails:
            raise ValueError("the step's own")
    return "done"


@task
def detailing(step: str, texts: list[str]) -> str:
    given = iter([*texts, *[texts[-1]] * 1000])
    with progress(step, lambda: 20, 40, "requests", detail=lambda: next(given), bar_s=0.05):
        time.sleep(0.6)
    return "done"


@flow
def details(step: str, texts: list[str]) -> str:
    return detailing(step, texts)


@flow
def works(step: str, shares: list[float], fails: bool = False) -> str:
    return working(step, shares, fails)


def drawn(key: str) -> list[tuple[float, bool]]:
    """The artifacts with this key: the percentage, and whether it belongs to a task run."""
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}}).json()
    assert {each["type"] for each in found} <= {"progress"}
    return [(float(each["data"]), each["task_run_id"] is not None) for each in found]


def test_a_bar_belongs_to_its_task_run_and_ends_full():
    assert works("Step_A", [0.25, 0.5]) == "done"
    assert drawn("progress-step-a") == [(100.0, True)]


def test_a_failed_steps_bar_stays_where_it_was():
    with pytest.raises(ValueError, match="the step's own"):
        works("step-b", [0.25], fails=True)
    assert drawn("progress-step-b") == [(25.0, True)]


def test_a_share_out_of_bounds_is_clipped():
    assert works("step-c", [7.0]) == "done"
    with pytest.raises(ValueError, match="the step's own"):
        works("step-d", [-7.0], fails=True)
    assert (drawn("progress-step-c"), drawn("progress-step-d")) == ([(100.0, True)], [(0.0, True)])


def test_the_details_are_in_the_description():
    assert details("step-e", ["1 of 2", "2 of 2"]) == "done"
    with get_client(sync_client=True) as client:
        wanted = {"artifacts": {"key": {"any_": ["progress-step-e"]}}}
        assert [each["description"] for each in client.request("POST", "/artifacts/filter", json=wanted).json()] == [
            "step-e: 20 of 40 requests, 2 of 2"
        ]


def test_a_failing_api_does_not_disturb_the_step(caplog, monkeypatch):
    def gone(*_args: object, **_more: object) -> None:
        raise ConnectionError("the API is gone")

    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", gone)
    with caplog.at_level(logging.WARNING, "infra.steps.progress"):
        assert works("step-f", [0.5]) == "done"
    assert "progress of step-f is no longer shown: ConnectionError: the API is gone" in caplog.text
    assert drawn("progress-step-f") == []
