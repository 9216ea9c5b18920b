"""Things that break during a run: bucket, credentials, files, disk, clock. A clear error or the step again, but never
a wrong result."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from runs import PrefectServer, ended, fake, made, on_s3, wait_for
from s3_for_tests import KEY, SECRET, boto_client
from small import bootstrap_parameters, small_world

from infra.operations.inventory import artifacts, problems, unneeded
from infra.settings import Settings
from infra.store.claims import claimed
from infra.store.manifest import Provenance
from infra.store.parts import find
from infra.store.store import Store
from infra.store.tables import read_rows, write_table

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def asked(place: Path) -> list[str]:
    path = place / "asked.txt"
    return path.read_text().split() if path.exists() else []


def only_line(log: Path) -> str:
    """The error that ended a run: the last line of its log that has one."""
    return next(line for line in reversed(log.read_text().splitlines()) if "StoreError" in line)


@pytest.mark.faults
def test_a_bucket_deleted_during_a_run_is_an_error_and_once_it_exists_again_the_run_resumes(
    s3_url, s3_bucket, prefect, tmp_path
):
    environment = prefect.environment() | on_s3(s3_url, s3_bucket) | {"BOLT_WORK_DIR": str(tmp_path / "work")}
    config = {"config": bootstrap_parameters(small_world(tmp_path / "files"))}
    run = fake("bootstrap", config, tmp_path, environment, "first")
    wait_for(lambda: asked(tmp_path))
    client = boto_client(s3_url)
    for each in client.list_objects_v2(Bucket=s3_bucket)["Contents"]:
        client.delete_object(Bucket=s3_bucket, Key=each["Key"])
    client.delete_bucket(Bucket=s3_bucket)
    assert ended(run) != 0
    assert "the bucket does not exist. Create it, or correct BOLT_STORE" in only_line(tmp_path / "first.log")
    client.create_bucket(Bucket=s3_bucket)
    assert ended(fake("bootstrap", config, tmp_path, environment, "second")) == 0
    assert len(asked(tmp_path)) == len(set(asked(tmp_path))) == 12  # the ledger outlived the bucket
    assert len([name for name in made(tmp_path / "second.log") if name.startswith("longcot/")]) == 1


@contextmanager
def user(s3_url: str, name: str) -> Iterator[tuple[dict[str, str], object]]:
    """Settings of a user with all permissions on a server that checks credentials, and its IAM client."""
    iam = boto_client(s3_url, "iam")
    iam.create_user(UserName=name)
    rights = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=json.dumps(rights))
    pair = iam.create_access_key(UserName=name)["AccessKey"]
    keys = {"BOLT_ACCESS_KEY_ID": pair["AccessKeyId"], "BOLT_SECRET_ACCESS_KEY": pair["SecretAccessKey"]}
    httpx.post(f"{s3_url}/moto-api/reset-auth", content=b"0").raise_for_status()
    try:
        as_user = {"aws_access_key_id": pair["AccessKeyId"], "aws_secret_access_key": pair["SecretAccessKey"]}
        import boto3

        yield keys, boto3.client("iam", endpoint_url=s3_url, region_name="us-east-1", **as_user)
    finally:
        httpx.post(f"{s3_url}/moto-api/reset-auth", content=b"inf").raise_for_status()


@pytest.mark.faults
def test_credentials_revoked_during_a_run_are_a_clear_error(s3_url, s3_bucket, prefect, tmp_path):
    settings = prefect.environment() | on_s3(s3_url, s3_bucket) | {"BOLT_WORK_DIR": str(tmp_path / "work")}
    config = {"config": bootstrap_parameters(small_world(tmp_path / "files"))}
    with user(s3_url, s3_bucket) as (keys, iam):
        run = fake("bootstrap", config, tmp_path, settings | keys, "first")
        wait_for(lambda: asked(tmp_path))
        iam.delete_access_key(UserName=s3_bucket, AccessKeyId=keys["BOLT_ACCESS_KEY_ID"])
        assert ended(run) != 0
    log = (tmp_path / "first.log").read_text()
    line = only_line(tmp_path / "first.log")  # S3 answers a HEAD request without saying why
    assert "the credentials are wrong or expired. Correct BOLT_ACCESS_KEY_ID" in line or "key was revoked" in line
    assert keys["BOLT_SECRET_ACCESS_KEY"] not in log
    again = settings | {"BOLT_ACCESS_KEY_ID": KEY, "BOLT_SECRET_ACCESS_KEY": SECRET}
    assert ended(fake("bootstrap", config, tmp_path, again, "second")) == 0
    assert len(asked(tmp_path)) == len(set(asked(tmp_path))) == 12


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(8))
def test_whatever_file_is_damaged_the_same_command_makes_it_again(prefect: PrefectServer, tmp_path, seed):
    """A file of the store or a ledger is overwritten, cut or deleted: the result is the same as before."""
    environment = prefect.environment() | {"BOLT_STORE": str(tmp_path / "store"), "BOLT_WORK_DIR": str(tmp_path / "w")}
    config = {"config": bootstrap_parameters(small_world(tmp_path / "files"))}
    assert ended(fake("bootstrap", config, tmp_path, environment, "first")) == 0
    store = Store.open(Settings(store=str(tmp_path / "store")))
    before = {each.folder: each.manifest.digest for each in artifacts(store) if each.manifest}
    random_one = random.Random(seed)
    files = [path for path in store.list() if path.count("/") >= 2 and not path.startswith("runs/")]  # pages of a run
    damaged = random_one.sample(files, 3)
    for path in damaged:
        content = store.read_bytes(path)
        how = random_one.choice(["garbage", "cut", "empty"])
        harmed = {"garbage": bytes(len(content)), "cut": content[: len(content) // 2], "empty": b""}[how]
        store.local_path(path).write_bytes(harmed)
    assert ended(fake("bootstrap", config, tmp_path, environment, "second")) == 0
    after = list(artifacts(store))
    assert {each.folder: each.manifest.digest for each in after if each.manifest} == before
    assert [line for each in after for line in problems(store, each)] == []
    remade = {"/".join(path.split("/")[:2]) for path in damaged if not path.startswith("imported/")}
    assert set(made(tmp_path / "second.log")) == remade


@pytest.mark.faults
def test_a_full_disk_is_an_error_and_with_free_space_the_run_resumes(prefect: PrefectServer, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(disk)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    try:
        environment = prefect.environment() | {"BOLT_STORE": str(disk / "store"), "BOLT_WORK_DIR": str(tmp_path / "w")}
        config = {"config": bootstrap_parameters(small_world(tmp_path / "files"))}
        (disk / "ballast").write_bytes(bytes(940_000))
        assert ended(fake("bootstrap", config, tmp_path, environment, "first")) != 0
        assert "no room is left. Free some space" in only_line(tmp_path / "first.log")
        (disk / "ballast").unlink()
        assert ended(fake("bootstrap", config, tmp_path, environment, "second")) == 0
        store = Store.open(Settings(store=str(disk / "store")))
        assert [line for each in artifacts(store) for line in problems(store, each)] == []
        assert len(asked(tmp_path)) == len(set(asked(tmp_path))) == 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("years", [-30, 30])
def test_times_in_the_past_or_the_future_cause_no_wrong_result(tmp_path, years):
    """After a jump of the clock: times in a manifest, of a part and of a claim. Only `prune` reads times."""
    store = Store.open(Settings(store=str(tmp_path)))
    ref = write_table(store, "numbers", "k", SCHEMA, [[{"n": n} for n in range(5)]], Provenance())
    manifest = json.loads(store.read_bytes("numbers/k/manifest.json"))
    manifest |= dict.fromkeys(("started", "ended"), f"{2026 + years}-01-01T00:00:00Z")
    store.write_bytes("numbers/k/manifest.json", json.dumps(manifest).encode())
    part = store.local_path("numbers/k/part-00000.parquet")
    then = time.time() + years * 365 * 86400
    os.utime(part, (then, then))
    assert find(store, "numbers", "k") == ref
    assert [row["n"] for row in read_rows(store, ref)] == list(range(5))
    assert unneeded(store, ["numbers/k"]) == []
    content = part.read_bytes()  # changed within the clock's jump: same size, same time
    part.write_bytes(content[:30] + bytes([content[30] ^ 1]) + content[31:])
    os.utime(part, (then, then))
    assert find(store, "numbers", "k") is None
    claim = {"holder": "other", "beat": 0, "machine": "elsewhere", "pid": 1, "began": 0}
    store.write_bytes("claims/numbers-k.json", json.dumps(claim).encode())
    began = time.monotonic()
    with claimed(store, "numbers", "k", lapse_s=1):
        assert 0.9 < time.monotonic() - began < 10
