"""Stores to test against: a local folder, and a real S3 server (moto) reached over HTTP."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import pytest
from s3_for_tests import boto_client, free_port, s3_settings

from infra.settings import Settings
from infra.store import Store


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory):
    """Address of a moto server in a process of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=output,
            env=environment,
        )
        try:
            for _ in range(300):
                assert server.poll() is None, log.read_text()
                try:
                    httpx.get(f"{url}/moto-api/data.json", timeout=5)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield url
        finally:
            server.terminate()
            server.wait(10)


@pytest.fixture
def s3_bucket(s3_url) -> str:
    bucket = f"bolt-{uuid.uuid4().hex}"
    boto_client(s3_url).create_bucket(Bucket=bucket)
    return bucket


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store.open(Settings(store=str(tmp_path / "artifacts")))


@pytest.fixture
def s3_store(s3_url, s3_bucket) -> Store:
    return Store.open(s3_settings(s3_url, s3_bucket))


@pytest.fixture(params=["local", "s3"])
def store(request) -> Store:
    """Each store in turn."""
    return request.getfixturevalue(f"{request.param}_store")
