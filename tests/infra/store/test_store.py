import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_for_tests import KEY, SECRET, boto_client, free_port, s3_settings

from infra.settings import Settings
from infra.store.store import STALE_S, Store, StoreError, _s3_store


def test_write_read_list_delete(store):
    store.write_bytes("a/b/one.bin", b"1")
    store.write_bytes("a/b/two.bin", b"22")
    store.write_bytes("a/bc", b"not below a/b")
    assert store.read_bytes("a/b/two.bin") == b"22"
    assert store.list("a/b") == ["a/b/one.bin", "a/b/two.bin"]
    assert store.list() == ["a/b/one.bin", "a/b/two.bin", "a/bc"]
    assert store.list("nothing/here") == []
    assert store.exists("a/bc")
    assert not store.exists("a/b")
    assert not store.exists("a/bc/d")
    assert store.stat("a/b/two.bin").size == 2
    store.delete("a/bc")
    store.delete("a/bc")
    assert not store.exists("a/bc")


def test_overwriting_changes_the_mark(store):
    store.write_bytes("f", b"one")
    before = store.stat("f")
    store.write_bytes("f", b"two")
    assert store.stat("f").mark != before.mark


def test_streams(store):
    with store.open_write("big") as sink:
        for _ in range(3):
            sink.write(b"x" * 1000)
    assert (sink.size, store.stat("big").size) == (3000, 3000)
    with store.open_read("big") as file:
        file.seek(2990)
        assert file.read() == b"x" * 10


@pytest.mark.parametrize("size", [10, 6 * 2**20])
def test_an_interrupted_stream_leaves_nothing(store, size):
    store.write_bytes("kept", b"old")

    def interrupted(path):
        with store.open_write(path) as sink:
            sink.write(b"x" * size)
            raise KeyboardInterrupt

    for path in ("new", "kept"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(path)
    assert store.list() == ["kept"]
    assert store.read_bytes("kept") == b"old"
    if store.is_local:
        assert [path.name for path in Path(store.root).iterdir()] == ["kept"]


def test_an_aborted_multipart_upload_is_not_completed(s3_url, s3_bucket, s3_store, monkeypatch):
    opened = s3_store._fs.open
    monkeypatch.setattr(s3_store._fs, "open", lambda path, mode: opened(path, mode, block_size=5 * 2**20))

    def interrupted():
        with s3_store.open_write("big") as sink:
            for _ in range(4):
                sink.write(b"x" * 4 * 2**20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert s3_store.list() == []
    assert "Uploads" not in boto_client(s3_url).list_multipart_uploads(Bucket=s3_bucket)


def test_an_endpoint_without_conditional_writes_is_refused(s3_store, monkeypatch):
    put = s3_store._fs.pipe_file
    monkeypatch.setattr(s3_store._fs, "pipe_file", lambda path, data, mode="overwrite": put(path, data))
    with pytest.raises(StoreError, match="has no conditional writes"):
        s3_store.check()
    assert s3_store.list() == []


def test_a_multipart_upload_is_whole(s3_url, s3_bucket, s3_store, monkeypatch):
    opened = s3_store._fs.open
    monkeypatch.setattr(s3_store._fs, "open", lambda path, mode: opened(path, mode, block_size=5 * 2**20))
    blocks = [bytes([n]) * 2**20 for n in range(12)]
    with s3_store.open_write("big") as sink:
        for block in blocks:
            sink.write(block)
    monkeypatch.undo()
    found = boto_client(s3_url).head_object(Bucket=s3_bucket, Key="some/prefix/big")
    assert found["ETag"].strip('"').endswith("-3")  # pieces of 5, 5 and 2 MiB
    assert s3_store.read_bytes("big") == b"".join(blocks)
    assert hashlib.sha256(b"".join(blocks)).hexdigest() == sink.sha256()


def test_an_upload_that_is_gone_may_be_tried_again(s3_url, s3_bucket):
    """As where it was completed and the answer was lost: the repeated request finds no upload (MinIO answers so)."""
    once = _s3_store(s3_settings(s3_url, s3_bucket), patient=False)  # each request is sent once
    once._fs.default_block_size = 5 * 2**20

    def gone():
        with once.open_write("big") as sink:
            sink.write(b"x" * 11 * 2**20)
            s3 = boto_client(s3_url)
            for upload in s3.list_multipart_uploads(Bucket=s3_bucket)["Uploads"]:
                s3.abort_multipart_upload(Bucket=s3_bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    with pytest.raises(StoreError, match="a multipart upload was lost") as error:
        gone()
    assert error.value.transient


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a/", "a\\b", "."])
def test_paths_outside_the_root_are_refused(local_store, path):
    for action in (local_store.read_bytes, local_store.exists, local_store.uri, local_store.delete):
        with pytest.raises(StoreError, match="plain relative path"):
            action(path)


@settings(max_examples=200)
@given(st.text(max_size=20))
def test_no_path_escapes_the_root(path):
    store = Store(root="/root/of/store", is_local=True)
    try:
        place = store.local_path(path)
    except StoreError:
        return
    assert place.resolve().is_relative_to("/root/of/store")


def test_addresses(tmp_path, s3_store):
    assert s3_store.uri("a", "b/c").endswith("/some/prefix/a/b/c")
    with pytest.raises(StoreError, match="not on local disk"):
        s3_store.local_path("a")
    store = Store.open(Settings(store=f"file://{tmp_path}/with%20space"))
    assert store.uri("x") == f"{tmp_path}/with space/x" == str(store.local_path("x"))


def test_missing_file_is_told(store):
    with pytest.raises(StoreError, match=r"cannot read a/b: it does not exist"):
        store.read_bytes("a/b")
    with pytest.raises(StoreError, match="does not exist"), store.open_read("a/b"):
        pass


def test_a_folder_on_another_disk_is_listed(local_store, tmp_path):
    local_store.write_bytes("scores/k/part", b"1")
    (tmp_path / "artifacts/scores").rename(tmp_path / "elsewhere")
    (tmp_path / "artifacts/scores").symlink_to(tmp_path / "elsewhere")
    assert local_store.list() == ["scores/k/part"]
    local_store.delete("scores/k/part")
    assert local_store.list() == []


def test_a_folder_that_cannot_be_read_is_no_empty_one(local_store, tmp_path):
    local_store.write_bytes("scores/k/part", b"1")
    folder = os.open(tmp_path / "artifacts/scores/k", os.O_RDONLY)
    for _ in range(20):  # its path gets longer than the kernel takes: that is refused to root as well
        os.mkdir("d" * 255, dir_fd=folder)
        inner = os.open("d" * 255, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    with pytest.raises(StoreError, match=r"cannot list its root.*File name too long"):
        local_store.list()


def test_stale_temporaries_are_swept(local_store):
    folder = local_store.local_path("a")
    folder.mkdir()
    fresh, stale = folder / ".fresh.tmp", folder / ".stale.tmp"
    for path in (fresh, stale):
        path.write_bytes(b"half")
    then = time.time() - STALE_S - 60
    os.utime(stale, (then, then))
    assert local_store.list() == []
    local_store.sweep("a")
    assert (fresh.exists(), stale.exists()) == (True, False)


# --- first contact with a store that is no good ---------------------------------------------------------------------


def refused(settings: Settings, within_s: float = 30.0) -> str:
    start = time.monotonic()
    with pytest.raises(StoreError) as caught:
        Store.open(settings)
    assert time.monotonic() - start < within_s
    text = str(caught.value)
    assert SECRET not in text
    assert KEY not in text
    assert caught.value.__cause__ is None
    assert settings.store.rstrip("/") in text
    return text


def test_root_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "a file is where a folder should be" in refused(Settings(store=str(store)))


@contextmanager
def mounted(place: Path, options: str):
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_read_only_disk(tmp_path):
    with mounted(tmp_path / "disk", "ro,size=1m") as disk:
        assert "read-only" in refused(Settings(store=str(disk)))


def test_full_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        store = Store.open(Settings(store=str(disk)))
        with pytest.raises(StoreError, match="no room is left"):
            store.write_bytes("big", bytes(2**21))

        def fill():
            with store.open_write("big") as sink:
                for _ in range(100):
                    sink.write(bytes(2**15))

        with pytest.raises(StoreError, match="no room is left"):
            fill()
        assert list(disk.iterdir()) == []


def test_file_size_limit(tmp_path):
    code = (
        "import resource, sys; from infra.settings import Settings; from infra.store.store import Store\n"
        "store = Store.open(Settings(store=sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "store.write_bytes('big', bytes(2000))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "StoreError" in done.stderr
    assert "no room is left" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unreachable_endpoint():
    text = refused(s3_settings(f"http://127.0.0.1:{free_port()}", "bucket"))
    assert "endpoint cannot be reached" in text
    assert "BOLT_ENDPOINT_URL" in text


def test_endpoint_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = refused(s3_settings(f"http://127.0.0.1:{silent.getsockname()[1]}", "bucket"))
    assert "endpoint cannot be reached" in text


@pytest.mark.moto  # SeaweedFS makes a missing bucket for whoever may make one
def test_missing_bucket(s3_url):
    assert "the bucket does not exist" in refused(s3_settings(s3_url, "no-such-bucket-here"))


@pytest.fixture
def guarded(s3_url, s3_bucket):
    """Settings of a user without rights on a server that checks credentials."""
    iam = boto_client(s3_url, "iam")
    iam.create_user(UserName=s3_bucket)
    pair = iam.create_access_key(UserName=s3_bucket)["AccessKey"]
    httpx.post(f"{s3_url}/moto-api/reset-auth", content=b"0").raise_for_status()
    yield s3_settings(s3_url, s3_bucket, key=pair["AccessKeyId"], secret=pair["SecretAccessKey"])
    httpx.post(f"{s3_url}/moto-api/reset-auth", content=b"inf").raise_for_status()


@pytest.mark.moto
def test_unknown_key(guarded, s3_url, s3_bucket):
    assert "credentials are wrong" in refused(s3_settings(s3_url, s3_bucket))


@pytest.mark.moto
def test_wrong_secret(guarded, s3_url, s3_bucket):
    key = guarded.access_key_id.get_secret_value()
    assert "credentials are wrong" in refused(s3_settings(s3_url, s3_bucket, key=key))


@pytest.mark.moto
def test_no_permission(guarded):
    text = refused(guarded)
    assert "permission is denied" in text
    assert guarded.secret_access_key.get_secret_value() not in text


def test_a_server_that_repeats_the_secret(s3_bucket):
    """Some servers spell the credentials in their answer: the error masks them."""

    class Leaky(BaseHTTPRequestHandler):
        def do_PUT(self):
            said = f"{KEY} with {SECRET} may not"
            body = f"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>{said}</Message></Error>".encode()
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Leaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        text = refused(s3_settings(f"http://127.0.0.1:{server.server_port}", s3_bucket))
    finally:
        server.shutdown()
        server.server_close()
    assert "permission is denied" in text
    assert "*** with *** may not" in text


def test_no_credentials_at_all(s3_url, s3_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    text = refused(Settings(store=f"s3://{s3_bucket}", endpoint_url=s3_url))
    assert "no credentials were found" in text


def test_the_aws_chain_serves_without_keys(s3_url, s3_bucket, monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text(f"[ours]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    with monkeypatch.context() as profile:
        profile.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        profile.setenv("AWS_PROFILE", "ours")
        Store.open(Settings(store=f"s3://{s3_bucket}/x", endpoint_url=s3_url, region="us-east-1"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store = Store.open(Settings(store=f"s3://{s3_bucket}", endpoint_url=s3_url))
    store.write_bytes("a", b"1")
    assert store.list() == ["a"]
    assert SECRET not in repr(store)


def written(store: Store, count: int) -> list[str]:
    """Write many small files, several at a time. Returns their paths in order."""
    paths = [f"many/{number % 7}/{number:06}" for number in range(count)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda path: store.write_bytes(path, b"x"), paths))
    return sorted(paths)


def test_a_listing_has_more_than_one_page_and_what_was_just_written(store):
    paths = written(store, 1_100)  # S3 lists 1,000 keys in one answer
    assert store.list() == paths
    assert store.list("many/3") == [path for path in paths if path.startswith("many/3/")]
    store.write_bytes("many/3/new", b"")
    store.delete(paths[0])
    assert store.list() == sorted([*paths[1:], "many/3/new"])


@pytest.mark.faults
def test_ten_thousand_files_are_listed(store):
    paths = written(store, 10_000)
    assert store.list() == paths
