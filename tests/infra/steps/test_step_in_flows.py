"""Steps under a real Prefect engine: cached states, retries, failures."""

from __future__ import annotations

from typing import Any

import httpx
import pyarrow as pa
import pytest
from prefect import flow
from prefect.futures import wait

from infra.settings import Settings
from infra.steps.step import Job, Plan, step
from infra.store.manifest import Provenance, Ref
from infra.store.store import Store, StoreError
from infra.store.tables import write_table

pytestmark = pytest.mark.usefixtures("prefect_server")
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])
calls: list[int] = []
failures: list[Exception] = []


@step
def numbers(plan: Plan, store: Store, *, count: int) -> Ref:
    """Count, but first raise the next one of `failures`."""
    calls.append(count)
    if failures:
        raise failures.pop(0)
    return write_table(store, plan.step, plan.key, SCHEMA, [[{"n": n} for n in range(count)]], plan.provenance)


at_once = numbers.task.with_options(retry_delay_seconds=0)


@flow
def counting(settings: Settings, keys: list[str]) -> list[tuple[str, Any]]:
    """Submit the step for each key; each future's state name and data."""
    plans = [Plan(step="numbers", key=key, provenance=Provenance()) for key in keys]
    futures = [at_once.submit(Job(plan, settings, {"count": 3})) for plan in plans]
    wait(futures)
    return [(future.state.name, future.result(raise_on_failure=False)) for future in futures]


@pytest.fixture
def settings(tmp_path):
    calls.clear()
    failures.clear()
    return Settings(store=str(tmp_path / "store"), work_dir=tmp_path / "work")


def test_made_then_cached_then_made_again_if_damaged(settings):
    first = counting(settings, ["a", "b"])
    assert [name for name, _ in first] == ["Completed", "Completed"]
    again = counting(settings, ["a", "b"])
    assert [name for name, _ in again] == ["Cached", "Cached"]
    assert [ref for _, ref in again] == [ref for _, ref in first]
    assert len(calls) == 2
    store = Store.open(settings)
    store.delete("numbers/a/manifest.json")
    data = store.read_bytes("numbers/b/part-00000.parquet")
    store.write_bytes("numbers/b/part-00000.parquet", data[:-1] + b"!")
    third = counting(settings, ["a", "b"])
    assert [name for name, _ in third] == ["Completed", "Completed"]
    assert [ref for _, ref in third] == [ref for _, ref in first]
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (httpx.ConnectError("refused"), 3),
        (StoreError("the endpoint cannot be reached", transient=True), 3),
        (StoreError("no room is left"), 1),
        (ValueError("wrong"), 1),
    ],
)
def test_only_outages_are_retried(settings, error, tries):
    failures.extend([error, error])
    ((name, result),) = counting(settings, ["a"])
    assert len(calls) == tries
    assert name == ("Completed" if tries == 3 else "Failed")
    assert isinstance(result, Ref if tries == 3 else type(error))


def test_an_outage_that_stays_fails_the_step(settings):
    failures.extend([httpx.ConnectError("refused")] * 9)
    ((name, result),) = counting(settings, ["a"])
    assert (name, len(calls), type(result)) == ("Failed", 3, httpx.ConnectError)


def test_a_write_that_fails_fails_the_flow(settings):
    Store.open(settings).write_bytes("numbers", b"a file where the step's folder should be")

    @flow
    def strict(settings: Settings) -> None:
        at_once.submit(Job(Plan(step="numbers", key="k", provenance=Provenance()), settings, {"count": 1})).result()

    state = strict(settings, return_state=True)
    assert state.is_failed()
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        state.result()
