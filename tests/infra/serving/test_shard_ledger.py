"""A shard's ledger with its copy on S3: another machine does not repeat the finished requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from s3_for_tests import s3_settings

from infra.serving import shard_ledger as module
from infra.serving.ledger import LedgerError
from infra.serving.shard_ledger import FOLDER, shard_ledger
from infra.store.store import Store, StoreError

ASKING = """
import sys, time
from pathlib import Path
from infra.serving import shard_ledger as module
from infra.settings import Settings
from infra.store.store import Store
module.EVERY_S = 0.2
store = Store.open(Settings.load())
with module.shard_ledger(store, Path(sys.argv[1]), "responses", "k") as ledger:
    for n in range(10_000):
        ledger.append(f"q{n}", {"text": "x"})
        print(n, flush=True)
        time.sleep(0.02)
"""


def interrupted(store: Store, place: Path, requests: list[str], text: str = "x") -> list[str]:
    """Finish these requests and fail. Returns the requests that were finished before."""
    with pytest.raises(KeyboardInterrupt), shard_ledger(store, place, "responses", "k") as ledger:  # noqa: PT012
        found = list(ledger)
        for each in requests:
            ledger.append(each, {"text": text})
        raise KeyboardInterrupt
    return found


def test_another_machine_resumes_and_the_first_then_has_both_parts(s3_store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 60)
    one, two = tmp_path / "one", tmp_path / "two"
    assert interrupted(s3_store, one, ["a", "b", "c"]) == []
    assert len(s3_store.list(FOLDER)) == 2  # two pieces
    assert sorted(interrupted(s3_store, two, ["d"], "of two")) == ["a", "b", "c"]
    assert sorted(interrupted(s3_store, one, [])) == ["a", "b", "c", "d"]
    with shard_ledger(s3_store, one, "responses", "k") as ledger:
        assert ledger["d"] == {"text": "of two"}
        ledger.path.unlink()  # the table is written
    assert s3_store.list(FOLDER) == []


def test_a_killed_process_leaves_its_finished_requests(s3_store, s3_url, s3_bucket, tmp_path):
    settings = s3_settings(s3_url, s3_bucket)
    environment = {**os.environ, "BOLT_STORE": settings.store, "BOLT_ENDPOINT_URL": s3_url, "BOLT_REGION": "us-east-1"}
    environment["BOLT_ACCESS_KEY_ID"] = settings.access_key_id.get_secret_value()
    environment["BOLT_SECRET_ACCESS_KEY"] = settings.secret_access_key.get_secret_value()
    command = [sys.executable, "-c", ASKING, str(tmp_path / "one")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not s3_store.list(FOLDER):
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        printed = process.stdout.read().split()
    found = interrupted(s3_store, tmp_path / "two", [])
    assert found
    assert found == [f"q{n}" for n in range(len(found))]  # the first ones, without a gap
    assert len(found) <= len(printed) + 1


def test_after_an_outage_the_copy_catches_up(s3_store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    with pytest.raises(KeyboardInterrupt), shard_ledger(s3_store, tmp_path / "one", "responses", "k") as ledger:  # noqa: PT012
        with monkeypatch.context() as outage:

            def unreachable(*_: object) -> None:
                raise StoreError("the endpoint cannot be reached", transient=True)

            outage.setattr(type(s3_store), "write_bytes", unreachable)
            ledger.append("a", {"text": "x"})
            end = time.monotonic() + 20
            while "could not be copied to the store" not in caplog.text:
                assert time.monotonic() < end
                time.sleep(0.02)
        raise KeyboardInterrupt
    assert interrupted(s3_store, tmp_path / "two", []) == ["a"]


def test_a_corrupt_copy_is_an_error_that_names_it(s3_store, tmp_path):
    s3_store.write_bytes("ledgers/responses-k/x-000000.jsonl", b'{"id": "a", "record": {}}\nnonsense\n')
    with pytest.raises(LedgerError, match=r"x-000000\.jsonl is corrupt at line 2: delete it"):
        interrupted(s3_store, tmp_path, [])


def test_files_that_others_put_beside_a_copy_are_left_alone(s3_store, tmp_path):
    for name in (".DS_Store", "._x-000000.jsonl", "notes.txt", "sub/x-000000.jsonl"):
        s3_store.write_bytes(f"ledgers/responses-k/{name}", b"\x00\n")
    assert interrupted(s3_store, tmp_path / "one", ["a"]) == []
    assert interrupted(s3_store, tmp_path / "two", []) == ["a"]


def test_a_local_store_needs_no_copy(local_store, tmp_path):
    interrupted(local_store, tmp_path / "work", ["a"])
    assert local_store.list() == []
    assert interrupted(local_store, tmp_path / "work", []) == ["a"]
