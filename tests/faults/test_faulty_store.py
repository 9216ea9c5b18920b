"""An S3 that fails in every way during a run: nothing is lost or doubled, and every failure is in the log."""

from __future__ import annotations

import logging
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from faulty_proxy import KINDS, FaultyProxy, faulty_proxy
from runs import PrefectServer, ended, fake, made, on_s3
from s3_for_tests import boto_client, s3_settings
from small import bootstrap_parameters, small_world

from infra.operations.inventory import artifacts, problems
from infra.settings import Settings
from infra.store import s3 as s3_module
from infra.store import store as store_module
from infra.store.claims import claimed
from infra.store.manifest import Provenance, Ref
from infra.store.models import fetch_model, publish_model
from infra.store.parts import find
from infra.store.store import Store, StoreError
from infra.store.tables import read_rows, write_table

# If the connection breaks, aiohttp silently sends the request again; only a second failure is logged.
ANSWERED = ("500", "503", "stall")
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])


def rows(number: int) -> list[dict[str, Any]]:
    return [{"n": n, "text": f"{number}:{n}:" + "x" * 50} for n in range(200 + number)]


def table(store: Store, number: int) -> Ref:
    """What a step does: look for it, claim it, make it."""
    key = f"k{number}"
    with claimed(store, "numbers", key, beat_s=0.2):
        if found := find(store, "numbers", key):
            return found
        return write_table(store, "numbers", key, SCHEMA, [rows(number)], Provenance(), rows_per_part=100)


def model(store: Store, number: int, folder: Path) -> None:
    source = folder / f"source-{number}"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    size = 12_000_000 if number % 32 == 0 else 300_000  # some are uploaded in pieces
    (source / "model.safetensors").write_bytes(random.Random(number).randbytes(size))
    ref = publish_model(store, "model", f"k{number}", source, Provenance())
    copy = fetch_model(store, ref, folder / "work")
    for name in ("config.json", "model.safetensors"):
        assert (copy / name).read_bytes() == (source / name).read_bytes()
    shutil.rmtree(copy)
    shutil.rmtree(source)


def work(settings: Any, numbers: range, folder: Path) -> None:
    """Write, find and read tables; publish and fetch models."""
    store = Store.open(settings)
    store._fs.default_block_size = 5 * 2**20
    for number in numbers:
        ref = table(store, number)
        assert find(store, "numbers", f"k{number}") == ref
        assert list(read_rows(store, ref)) == rows(number)
        if number % 4 == 0:
            model(store, number, folder / str(number))


def checked(store: Store, numbers: range) -> None:
    """All that was written exists, whole and once, and nothing else."""
    found = list(artifacts(store))
    assert [line for each in found for line in problems(store, each)] == []
    expected = [f"numbers/k{n}" for n in numbers] + [f"model/k{n}" for n in numbers if n % 4 == 0]
    assert sorted(each.folder for each in found) == sorted(expected)
    for number in numbers:
        ref = find(store, "numbers", f"k{number}")
        assert ref
        assert list(read_rows(store, ref)) == rows(number)
    assert store.list("claims") == []
    assert [path for path in store.list() if path.startswith("probe-")] == []


SOON = ("503", "reset", "torn upload")
"""Kinds that are tried in `make test`; it takes ten seconds each."""


def through_faults(
    s3_url: str, bucket: str, folder: Path, numbers: range, threads: int, proxy: FaultyProxy, rate: float
) -> None:
    stores = [s3_settings(proxy.url, bucket) for _ in range(threads)]
    Store.open(stores[0])  # first contact has few retries on purpose, so that it is made before the faults begin
    opened = Store.open
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(threads) as pool:
        patch.setattr(Store, "open", lambda settings: store_module._s3_store(settings, patient=True))
        proxy.rate = rate
        shares = [range(numbers.start + n, numbers.stop, threads) for n in range(threads)]
        list(pool.map(work, stores, shares, [folder / str(n) for n in range(threads)]))
        proxy.rate = 0
    checked(opened(s3_settings(s3_url, bucket)), numbers)


@pytest.mark.parametrize(
    "kind", [each if each in SOON else pytest.param(each, marks=pytest.mark.faults) for each in KINDS]
)
def test_each_kind_of_fault_is_survived_and_logged(kind, s3_url, s3_bucket, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(s3_module, "READ_TIMEOUT_S", 0.5)
    with faulty_proxy(s3_url, rate=0, seed=1, stall_s=1, kinds=[kind], most=8) as proxy:
        with caplog.at_level(logging.WARNING):
            through_faults(s3_url, s3_bucket, tmp_path, range(5), 1, proxy, rate=0.5)
        assert proxy.faults == {kind: 8}
    logged = [each.getMessage() for each in caplog.records if "failed:" in each.getMessage() or "Retrying" in each.msg]
    assert len(logged) >= (8 if kind in ANSWERED else 1)
    text = "\n".join(logged)
    assert "s3cr3t" not in text
    assert "AKIA" not in text


def test_an_s3_that_stays_down_ends_in_one_clear_error(s3_url, s3_bucket, monkeypatch):
    monkeypatch.setattr(store_module, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(store_module, "ATTEMPTS", 2)
    store = store_module._s3_store(s3_settings(s3_url, s3_bucket), patient=True)
    store.write_bytes("a", b"1")
    with faulty_proxy(s3_url, rate=1, seed=1, stall_s=0, kinds=["503", "reset"]) as proxy:
        down = store_module._s3_store(s3_settings(proxy.url, s3_bucket), patient=True)
        for action in (
            lambda: down.read_bytes("a"),
            lambda: down.write_bytes("b", b"2"),
            lambda: down.create("c", b"3"),
            lambda: down.list(),
            lambda: down.delete("a"),
            lambda: down.exists("a"),
        ):
            with pytest.raises(StoreError, match=r"overloaded or failing|cannot be reached") as raised:
                action()
            assert raised.value.transient
        # Two attempts of the store, of botocore and, after a reset, of aiohttp. A port may have had other users before.
        assert sum(s3_bucket in line for line in proxy.lines) <= 6 * 2 * 2 * 2, proxy.lines
    assert store.list() == ["a"]


def digests(store: Store) -> dict[str, str]:
    """The content of every artifact, by its folder."""
    return {each.folder: each.manifest.digest for each in artifacts(store) if each.manifest}


def bootstrap_through(
    s3_url: str, bucket: str, place: Path, prefect: PrefectServer, rate: float, config: dict[str, Any], **how: Any
) -> tuple[FaultyProxy, str]:
    """Run a real flow over the faulty store, the same command until it is done. Returns the proxy and the logs."""
    with faulty_proxy(s3_url, rate=rate, **how) as proxy:
        environment = prefect.environment() | on_s3(proxy.url, bucket) | {"BOLT_WORK_DIR": str(place / "work")}
        logs = []
        for number in range(8):
            run = fake("bootstrap", config, place, environment, f"run-{number}")
            logs.append(place / f"run-{number}.log")
            if ended(run) == 0:
                break
        else:
            raise AssertionError(logs[-1].read_text()[-5000:])
        proxy.rate = 0
    store = Store.open(s3_settings(s3_url, bucket))
    found = list(artifacts(store))
    assert [line for each in found for line in problems(store, each)] == []
    requests = (place / "asked.txt").read_text().split()
    assert len(requests) == len(set(requests)) == 12  # no finished request is sent again
    assert store.list("claims") == []
    again = fake("bootstrap", config, place, prefect.environment() | on_s3(s3_url, bucket), "again")
    assert ended(again) == 0
    assert made(place / "again.log") == []
    return proxy, "".join(log.read_text() for log in logs)


@pytest.mark.faults
def test_a_flow_over_a_faulty_store_ends_well(s3_url, s3_bucket, prefect, tmp_path):
    proxy, log = bootstrap_through(
        s3_url,
        s3_bucket,
        tmp_path,
        prefect,
        0.03,
        {"config": bootstrap_parameters(small_world(tmp_path / "files"))},
        seed=3,
        stall_s=0.5,
        kinds=("500", "503", "cut answer", "lost answer"),
    )
    assert proxy.faults.total() >= 5
    assert "failed:" in log


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_five_hundred_faults_lose_nothing(s3_url, s3_bucket, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(s3_module, "READ_TIMEOUT_S", 5)
    with faulty_proxy(s3_url, rate=0, seed=7, stall_s=10) as proxy:
        with caplog.at_level(logging.WARNING):
            through_faults(s3_url, s3_bucket, tmp_path, range(96), 8, proxy, rate=0.2)
        print(f"{proxy.requests} requests, {proxy.faults.total()} faults: {dict(proxy.faults)}")
        assert proxy.faults.total() >= 500
        assert set(proxy.faults) == set(KINDS)
        logged = sum("failed:" in each.getMessage() or "Retrying" in each.msg for each in caplog.records)
        assert logged >= sum(proxy.faults[kind] for kind in ANSWERED)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_flows_over_a_very_faulty_store_end_well(s3_url, prefect, tmp_path):
    """Whole flow runs, each over a bucket of its own, until they met 500 faults. Each makes what an undisturbed run
    makes, to the byte."""
    config = {"config": bootstrap_parameters(small_world(tmp_path / "files"))}
    calm = {"BOLT_STORE": str(tmp_path / "calm" / "store"), "BOLT_WORK_DIR": str(tmp_path / "calm" / "work")}
    assert ended(fake("bootstrap", config, tmp_path / "calm", prefect.environment() | calm)) == 0
    undisturbed = digests(Store.open(Settings(store=calm["BOLT_STORE"])))
    assert {name.split("/")[0] for name in undisturbed} >= {"queries", "responses", "scores", "longcot"}
    met, requests = Counter[str](), 0
    for number in count():
        bucket = f"bolt-very-faulty-{uuid4().hex}"
        boto_client(s3_url).create_bucket(Bucket=bucket)
        place = tmp_path / str(number)
        proxy, _ = bootstrap_through(s3_url, bucket, place, prefect, 0.2, config, seed=number, stall_s=1)
        assert digests(Store.open(s3_settings(s3_url, bucket))) == undisturbed
        met, requests = met + proxy.faults, requests + proxy.requests
        if met.total() >= 500:
            break
    print(f"{number + 1} runs, {requests} requests, {met.total()} faults: {dict(met)}")
    assert set(met) == set(KINDS)
