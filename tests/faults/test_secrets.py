"""Secrets in a run's environment are found in no file, no command line, and nothing that it stored."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import PrefectServer, ended, fake, on_s3, started
from s3_for_tests import boto_client
from small import SMALLEST, bootstrap_parameters, small_world

SECRETS = {
    "BOLT_ACCESS_KEY_ID": "AKIAPLANTED7KEY7FOR7",
    "BOLT_SECRET_ACCESS_KEY": "planted-s3-secret-5be1c7",
    "HF_TOKEN": "hf_plantedTokenQx81",
    "BOLT_WEBHOOK_URL": "https://hooks.example.invalid/planted-path-93ad",
}


class CommandLines:
    """Watches /proc for command lines with a secret while the block runs."""

    def __init__(self) -> None:
        self.leaks: set[str] = set()
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:  # it just ended
                    continue
                self.seen.add(line)
                self.leaks |= {name for name, secret in SECRETS.items() if secret.encode() in line}

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def readable(content: bytes) -> bytes:
    """The bytes of a file. Parquet pages are compressed, so that its rows as text are added."""
    if content[:4] != b"PAR1":
        return content
    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    return content + "\n".join(str(value) for row in rows for value in row.values()).encode()


def leaks_in_files(*folders: Path) -> list[str]:
    """Files that hold a secret; the folders' parameters files of the tests hold none."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                content = readable(path.read_bytes())
                found += [f"{path}: {name}" for name, secret in SECRETS.items() if secret.encode() in content]
    return found


def leaks_in_bucket(s3_url: str, bucket: str) -> list[str]:
    client, found = boto_client(s3_url), []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for each in page.get("Contents", []):
            content = readable(client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read())
            found += [f"{each['Key']}: {name}" for name, secret in SECRETS.items() if secret.encode() in content]
    return found


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "log.txt").write_text(f"oh {SECRETS['HF_TOKEN']} no")
    assert leaks_in_files(tmp_path) == [f"{tmp_path}/log.txt: HF_TOKEN"]
    secret = SECRETS["HF_TOKEN"]
    texts = [secret[:9], secret[9:], "x" * 5_000, secret]  # the last is compressed to its halves before
    pq.write_table(pa.table({"text": texts}), tmp_path / "log.txt", compression="zstd", write_statistics=False)
    assert secret.encode() not in (tmp_path / "log.txt").read_bytes()
    assert leaks_in_files(tmp_path) == [f"{tmp_path}/log.txt: HF_TOKEN"]
    with CommandLines() as watched:
        child = started(["-c", "import time; time.sleep(1)", SECRETS["HF_TOKEN"]], tmp_path / "out", {})
        child.wait()
    assert watched.leaks == {"HF_TOKEN"}


@pytest.mark.parametrize("broken", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_a_flow_leaves_no_secret_anywhere(s3_url, s3_bucket, prefect: PrefectServer, tmp_path, broken):
    """Even if the run fails because of what the secrets are for."""
    environment = {**prefect.environment(), **on_s3(s3_url, s3_bucket), **SECRETS, "PREFECT_LOGGING_LEVEL": "DEBUG"}
    environment["BOLT_WORK_DIR"] = str(tmp_path / "work")
    config = {"config": bootstrap_parameters(small_world(tmp_path / "files"))}
    if broken:
        boto_client(s3_url).delete_bucket(Bucket=s3_bucket)
    with CommandLines() as watched:
        status = ended(fake("bootstrap", config, tmp_path, environment))
    assert (status != 0) == broken, (tmp_path / "run.log").read_text()[-3000:]
    time.sleep(1)  # Prefect's log handler ships in the background
    assert len(watched.seen) > 3
    assert watched.leaks == set()
    assert leaks_in_files(tmp_path, prefect.home) == []
    if not broken:
        assert leaks_in_bucket(s3_url, s3_bucket) == []
        assert any(path.suffix == ".db" for path in prefect.home.iterdir())


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_servers_and_trainers_leave_no_secret_anywhere(s3_url, s3_bucket, prefect: PrefectServer, tmp_path):
    environment = {**prefect.environment(), **on_s3(s3_url, s3_bucket), **SECRETS, "PREFECT_LOGGING_LEVEL": "DEBUG"}
    environment["BOLT_WORK_DIR"] = str(tmp_path / "work")
    words = [word for each in SMALLEST for word in ("--set", each)]
    with CommandLines() as watched:
        status = ended(started(["-m", "flows", "bolt/nano", *words], tmp_path / "run.log", environment), 1000)
    assert status == 0, (tmp_path / "run.log").read_text()[-5000:]
    assert any(b"vllm" in line for line in watched.seen)
    assert any(b"torch.distributed.run" in line for line in watched.seen)
    assert watched.leaks == set()
    assert leaks_in_files(tmp_path, prefect.home) == []
    assert leaks_in_bucket(s3_url, s3_bucket) == []
