"""Copies of checkpoints in the store: another host goes on from the last whole one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from interrupted import made

from infra.settings import Settings
from infra.store.store import Store, StoreError
from infra.training import checkpoint_copies
from infra.training.checkpoint_copies import copy_last, drop, kept_copied, latest
from infra.training.checkpoints import checkpoint_name, read

HERE = ("sft", "k")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of, however other tests have set up logging."""
    said: list[str] = []
    monkeypatch.setattr(checkpoint_copies.log, "warning", lambda text, *values: said.append(text % values))
    return said


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(Settings(store=str(tmp_path / "store")))


def test_another_host_gets_the_last_checkpoint(store: Store, tmp_path: Path) -> None:
    for step in (5, 7):
        made(tmp_path / "one", step)
        copy_last(store, *HERE, tmp_path / "one")
    assert {path.split("/")[2] for path in store.list("checkpoints/sft-k")} == {checkpoint_name(7)}
    found = latest(store, *HERE, tmp_path / "other")
    assert found == tmp_path / "other" / checkpoint_name(7)
    assert read(found) == read(tmp_path / "one" / checkpoint_name(7))
    assert (found / "global_step" / "weights.pt").read_bytes() == bytes([7]) * 1000


def test_a_later_local_checkpoint_is_used_and_nothing_is_copied(store: Store, tmp_path: Path) -> None:
    made(tmp_path / "one", 5)
    copy_last(store, *HERE, tmp_path / "one")
    mine = made(tmp_path / "mine", 6)
    assert latest(store, *HERE, tmp_path / "mine") == mine
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [mine.name]


def test_a_torn_copy_is_passed_over(store: Store, tmp_path: Path, warnings: list[str]) -> None:
    made(tmp_path / "one", 5)
    copy_last(store, *HERE, tmp_path / "one")
    store.write_bytes("checkpoints/sft-k/step-00000005/latest", b"cut")
    assert latest(store, *HERE, tmp_path / "other") is None
    assert "is not whole and is not used" in warnings[0]
    mine = made(tmp_path / "mine", 4)
    assert latest(store, *HERE, tmp_path / "mine") == mine


def test_a_copy_that_was_interrupted_is_made_again(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    made(tmp_path / "one", 5)
    with monkeypatch.context() as killed:
        killed.setattr(checkpoint_copies.shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            copy_last(store, *HERE, tmp_path / "one")
    assert latest(store, *HERE, tmp_path / "other") is None
    copy_last(store, *HERE, tmp_path / "one")
    assert latest(store, *HERE, tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [checkpoint_name(5)]


def test_copies_are_made_now_and_then_and_a_failure_only_delays_them(
    store: Store, tmp_path: Path, monkeypatch: Any, warnings: list[str]
) -> None:
    made(tmp_path / "one", 5)
    calls: list[int] = []

    def failing_first(*given: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StoreError("the endpoint cannot be reached", transient=True)
        copy_last(*given)

    monkeypatch.setattr(checkpoint_copies, "copy_last", failing_first)
    with kept_copied(store, *HERE, tmp_path / "one", minutes=0):
        deadline = time.monotonic() + 30
        while not store.exists("checkpoints/sft-k/step-00000005/manifest.json"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert "could not be copied to the store: the endpoint cannot be reached" in warnings[0]


def test_copies_are_deleted_once_they_are_not_needed(store: Store, tmp_path: Path) -> None:
    made(tmp_path / "one", 5)
    copy_last(store, *HERE, tmp_path / "one")
    store.write_bytes("checkpoints/sft-other/step-00000005/manifest.json", b"{}")
    drop(store, *HERE)
    assert store.list("checkpoints") == ["checkpoints/sft-other/step-00000005/manifest.json"]


def test_a_store_or_disk_that_fails_does_not_start_the_training_anew(
    store: Store, tmp_path: Path, monkeypatch: Any
) -> None:
    made(tmp_path / "one", 5)
    copy_last(store, *HERE, tmp_path / "one")

    def failing(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(checkpoint_copies, "copy_file", failing)
        with pytest.raises(StoreError, match="No space left"):
            latest(store, *HERE, tmp_path / "other")
    assert latest(store, *HERE, tmp_path / "other")
