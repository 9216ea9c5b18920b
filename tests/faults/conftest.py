"""An S3 server and a Prefect server for the fault tests, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from runs import PrefectServer
from s3_for_tests import free_port, moto_url, s3_bucket, s3_url

__all__ = ["moto_url", "s3_bucket", "s3_url"]


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server with a home of its own."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    server = PrefectServer(home, f"http://127.0.0.1:{port}/api")
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "BOLT_", "AWS_"))}
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=env | server.environment(), stdout=log, stderr=log, cwd=home)
        try:
            for _ in range(600):
                assert process.poll() is None, Path(log.name).read_text()
                try:
                    httpx.get(f"{server.url}/health", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait(30)
