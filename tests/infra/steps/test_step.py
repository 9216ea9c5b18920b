"""What `@step` makes of a function, called as a worker would but without Prefect; test_step_in_flows has the rest."""

from __future__ import annotations

import errno
import inspect
import logging
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pytest
from prefect.states import Failed

from infra.settings import Settings
from infra.steps.step import Job, Plan, is_transient, step
from infra.store.manifest import BadArtifact, Provenance, Ref, read_manifest
from infra.store.store import Store, StoreError
from infra.store.tables import read_rows, write_table

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])
calls: list[int] = []


@step
def numbers(plan: Plan, store: Store, *, count: int) -> Ref:
    """Count."""
    calls.append(count)
    return write_table(store, plan.step, plan.key, SCHEMA, [[{"n": n} for n in range(count)]], plan.provenance)


@pytest.fixture
def settings(tmp_path):
    calls.clear()
    return Settings(store=str(tmp_path / "store"), work_dir=tmp_path / "work")


PLAN = Plan(step="numbers", key="k", provenance=Provenance(config={"count": 3}))


def test_the_task_keeps_name_and_text_and_takes_plan_settings_arguments():
    assert numbers.task.name == "numbers"
    assert numbers.task.description == "Count."
    assert list(inspect.signature(numbers.task.fn).parameters) == ["job"]
    assert numbers.task.persist_result is False


def test_first_makes_then_finds(settings):
    made = numbers.task.fn(Job(PLAN, settings, {"count": 3}))
    assert isinstance(made, Ref)
    found = numbers.task.fn(Job(PLAN, settings, {"count": 3}))
    assert (found.name, found.type.name, found.data) == ("Cached", "COMPLETED", made)
    assert calls == [3]
    numbers.task.fn(Job(PLAN.model_copy(update={"key": "other"}), settings, {"count": 3}))
    assert calls == [3, 3]
    store = Store.open(settings)
    assert [row["n"] for row in read_rows(store, made)] == [0, 1, 2]
    assert read_manifest(store, made)["config"] == {"count": 3}


@pytest.mark.parametrize("harm", ["flipped byte", "cut short", "part gone", "manifest gone", "manifest torn"])
def test_what_is_not_whole_is_made_again(settings, harm, caplog):
    made = numbers.task.fn(Job(PLAN, settings, {"count": 3}))
    store = Store.open(settings)
    part, manifest = "numbers/k/part-00000.parquet", "numbers/k/manifest.json"
    data = store.read_bytes(part)
    if harm == "flipped byte":
        store.write_bytes(part, data[:20] + bytes([data[20] ^ 1]) + data[21:])
    elif harm == "cut short":
        store.write_bytes(part, data[:-1])
    elif harm == "manifest torn":
        store.write_bytes(manifest, store.read_bytes(manifest)[:-9])
    else:
        store.delete(part if harm == "part gone" else manifest)
    with caplog.at_level(logging.WARNING):
        again = numbers.task.fn(Job(PLAN, settings, {"count": 3}))
    assert again == made
    assert calls == [3, 3]
    assert [row["n"] for row in read_rows(store, again)] == [0, 1, 2]
    assert ("will be made again" in caplog.text) == (harm != "manifest gone")
    assert numbers.task.fn(Job(PLAN, settings, {"count": 3})).name == "Cached"


def test_a_write_that_fails_fails_the_step(settings):
    Store.open(settings).write_bytes("numbers", b"a file where the step's folder should be")
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        numbers.task.fn(Job(PLAN, settings, {"count": 3}))


# ---- which failures are retried


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("slow"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (StoreError("the endpoint cannot be reached", transient=True), True),
        (StoreError("permission is denied"), False),
        (BadArtifact("corrupt"), False),
        (httpx.HTTPStatusError("404", request=None, response=None), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("wrong"), False),
        (RuntimeError("the server died"), False),
    ],
)
def test_only_network_failures_are_transient(error, again):
    assert is_transient(None, None, Failed(data=error)) is again


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (type("EndpointConnectionError", (Exception,), {})(), True),
        (ConnectionResetError("reset"), True),
        (TimeoutError(), True),
        (SimpleNamespace(code="SlowDown"), True),
        (SimpleNamespace(code="InternalError"), True),
        (SimpleNamespace(code="AccessDenied"), False),
        (SimpleNamespace(code="NoSuchBucket"), False),
        (SimpleNamespace(code="InvalidAccessKeyId"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (PermissionError(), False),
        (type("NoCredentialsError", (Exception,), {})(), False),
    ],
)
def test_the_store_distinguishes_outages_from_lasting_errors(error, transient):
    if isinstance(error, SimpleNamespace):  # as botocore's ClientError holds its code, behind s3fs's OSError
        cause = type("ClientError", (Exception,), {"response": {"Error": {"Code": error.code}}})()
        error = OSError(errno.EIO, error.code)
        error.__cause__ = cause
    store = Store(root="s3://bucket", is_local=False, _errors=(Exception,))
    with pytest.raises(StoreError) as raised, store.explained("read", "a/b"):
        raise error
    assert raised.value.transient is transient
    assert is_transient(None, None, Failed(data=raised.value)) is transient


def test_an_endpoint_that_is_down_is_an_outage(tmp_path):
    keys = {"access_key_id": "id", "secret_access_key": "key"}
    settings = Settings(store="s3://bucket", endpoint_url="http://127.0.0.1:9", region="x", **keys)
    with pytest.raises(StoreError, match="the endpoint cannot be reached") as error:
        Store.open(settings)
    assert error.value.transient
