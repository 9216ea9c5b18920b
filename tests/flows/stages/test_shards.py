"""Shards of a step: each is an artifact; what this run has made is not made again."""

from __future__ import annotations

import threading
import time

import pyarrow as pa
import pytest
from prefect import flow

from flows.stages.common import Common
from flows.stages.run import TASK_RUNNER, begin
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import write_table

pytestmark = pytest.mark.usefixtures("prefect_server")
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])
SERVING = {"policy": {"max_model_len": 64}, "reward": {"max_model_len": 64}}
lock, running, most, made = threading.Lock(), [0], [0], list[str]()


def numbers(plan: Plan, store: Store, *, shard: int = 0, shards: int = 1) -> Ref:
    """Note how many shards run at once."""
    with lock:
        made.append(plan.key)
        running[0] += 1
        most[0] = max(most[0], running[0])
    time.sleep(0.3)
    with lock:
        running[0] -= 1
    return write_table(store, plan.step, plan.key, SCHEMA, [[{"n": shard}]], plan.provenance)


numbers.__module__ = "tasks.queries.draw"  # keys are made of the project's modules only


@flow(task_runner=TASK_RUNNER)
def sharded(one_by_one: bool) -> list[list[Ref]]:
    with begin(Common(serving=SERVING)) as run:
        each = step(one_by_one=one_by_one)(numbers)
        return [run.do_shards(each, "numbers", 4), run.do_shards(each, "numbers", 4), [run.do(each, "numbers")]]


@pytest.mark.parametrize("one_by_one", [False, True])
def test_shards_run_at_once_unless_they_would_share_a_core(tmp_path, monkeypatch, one_by_one):
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    most[0] = 0
    made.clear()
    first, again, whole = sharded(one_by_one)
    assert (most[0] == 1) == one_by_one
    assert first == again
    assert len({ref.key for ref in first + whole}) == len(made) == 5
