"""moto, an S3 server for tests, reached over HTTP, with clients and settings for it."""

import os
import socket
import subprocess
import sys
import time
import uuid
from typing import Any

import boto3
import httpx
import pytest

from infra.settings import Settings

KEY, SECRET = "AKIATESTTESTTESTTEST", "s3cr3t-of-the-tests"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def boto_client(url: str, service: str = "s3") -> Any:
    return boto3.client(
        service, endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )


def s3_settings(url: str, bucket: str, *, key: str = KEY, secret: str = SECRET) -> Settings:
    return Settings(
        store=f"s3://{bucket}/some/prefix",
        endpoint_url=url,
        region="us-east-1",
        access_key_id=key,
        secret_access_key=secret,
    )


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory):
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


def new_bucket(url: str) -> str:
    """The name of a new, empty bucket."""
    bucket = f"bolt-{uuid.uuid4().hex}"
    boto_client(url).create_bucket(Bucket=bucket)
    return bucket


@pytest.fixture
def s3_url(moto_url: str) -> str:
    return moto_url


@pytest.fixture
def s3_bucket(s3_url: str) -> str:
    return new_bucket(s3_url)
