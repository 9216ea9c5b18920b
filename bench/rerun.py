"""Measure a rerun of the whole method in which every step is cached, on S3 and on local disk.

    python bench/rerun.py STORE [--rounds 3] [--out FILE.jsonl]

STORE is a local artifact store in which `bolt/nano` has finished (`artifacts`, after `make demo`). It is copied to
S3, a moto server in a process of its own, reached over HTTP. The time is between the first and the last log line of the
flow run, so that the start of Python, imports and Prefect are left out. The two take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import boto3
import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, surroundings
from infra.settings import Settings
from infra.store.store import Store

KEY, SECRET, BUCKET = "bench", "bench-secret", "bench"
LINE = re.compile(r"^(\d\d:\d\d:\d\d\.\d+) \| .*Flow run '", re.M)


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """A moto server with an empty bucket; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        for _ in range(300):
            try:
                httpx.get(f"{url}/moto-api/data.json", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.terminate()
        server.wait(10)


def seconds(environment: dict[str, str], home: Path) -> tuple[float, int, int]:
    """One rerun: seconds between first and last log line, number of steps, and number of cached steps."""
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BOLT_", "AWS_", "PREFECT_"))}
    own = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "BOLT_WORK_DIR": str(home / "work"),
    }
    command = [sys.executable, "-m", "flows", "bolt/nano"]
    done = subprocess.run(command, cwd=ROOT, env={**kept, **own, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the rerun failed:\n{done.stderr[-3000:]}")
    times = [datetime.strptime(text, "%H:%M:%S.%f") for text in LINE.findall(done.stderr)]
    steps, cached = re.search(r"(\d+) steps, (\d+) cached", done.stdout).groups()
    return (times[-1] - times[0]).total_seconds() % 86_400, int(steps), int(cached)


def measure(folder: Path, rounds: int, work: Path) -> dict[str, object]:
    """Medians in seconds of reruns on local disk and on S3."""
    with s3_server(work / "moto.log") as url:
        s3 = {"store": f"s3://{BUCKET}/bolt", "endpoint_url": url, "region": "us-east-1"}
        s3 |= {"access_key_id": KEY, "secret_access_key": SECRET}
        source, target = Store.open(Settings(store=str(folder))), Store.open(Settings(**s3))
        for path in source.list():
            with source.open_read(path) as file, target.open_write(path) as sink:
                while chunk := file.read(2**22):
                    sink.write(chunk)
        places = {"local": {"BOLT_STORE": str(folder.resolve())}}
        places["s3"] = {f"BOLT_{name.upper()}": value for name, value in s3.items()}
        found: dict[str, list[float]] = {name: [] for name in places}
        for _ in range(rounds):
            for name, environment in places.items():
                took, steps, cached = seconds(environment, work / name)
                if steps != cached:
                    raise SystemExit(
                        f"{name}: only {cached} of {steps} steps were cached: finish bolt/nano in {folder} first"
                    )
                found[name].append(took)
        figures = {f"{name}, s": round(statistics.median(times), 2) for name, times in found.items()}
        return {**figures, "all": found, "steps": steps, "files": len(source.list())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = {**surroundings(), **measure(given.store, given.rounds, Path(folder))}
    print(json.dumps(row, indent=1))
    if given.out:
        with given.out.open("a") as file:
            print(json.dumps(row), file=file)


if __name__ == "__main__":
    main()
