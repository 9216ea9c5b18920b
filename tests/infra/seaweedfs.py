"""A real S3 server for the tests: SeaweedFS, a single binary from the package index."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from s3_for_tests import KEY, SECRET, boto_client, free_port, new_bucket

WEED = Path(sys.executable).with_name("weed")
START_S = 120


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Address of a SeaweedFS server in a process of its own, with its files in `folder`.

    Each bucket takes one small volume, and there are as many volumes as the disk has room for.
    """
    (folder / "data").mkdir(parents=True)
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    user = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [user]}))
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = ["setpriv", "--pdeathsig", "KILL"]  # the kernel ends it with its parent, even by `kill -9`
    command += [str(WEED), "server", "-s3", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-s3.config={folder / 's3.json'}", f"-s3.port={port}", f"-s3.port.grpc={free_port()}"]
    for part in ("master", "volume", "filer"):
        command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
    command += ["-volume.max=0", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    log = folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WEED_"))}
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            wait_until_it_stores(server, url, log)
            yield url
        finally:
            server.kill()  # its orderly end takes long, and its files are temporary
            server.wait(10)


def wait_until_it_stores(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """The S3 part answers before the parts behind it are ready: wait until an object can be written."""
    client, ends = boto_client(url), time.monotonic() + START_S
    while True:
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            client.put_object(Bucket=new_bucket(url), Key="ready", Body=b"1")
        except (BotoCoreError, ClientError):
            assert time.monotonic() < ends, log.read_text(errors="replace")[-3000:]
            time.sleep(0.3)
        else:
            return
