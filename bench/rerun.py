"""Measure a rerun of the whole method in which every step is cached, on S3 and on local disk.

    python bench/rerun.py STORE [--rounds 3] [--out FILE.jsonl]

STORE is a local artifact store in which `bolt/nano` has finished (`artifacts`, after `make demo`). It is copied to
S3, a moto server in this process, reached over HTTP. The time is between the first and the last log line of the
flow run, so that the start of Python, imports and Prefect are left out. The two take turns; figures are medians.
"""

from __future__ import annotations

import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import boto3
from moto.server import ThreadedMotoServer

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, report, surroundings
from infra.settings import Settings
from infra.store.store import Store

KEY, SECRET, BUCKET = "bench", "bench-secret", "bench"
LINE = re.compile(r"^(\d\d:\d\d:\d\d\.\d+) \| .*Flow run '", re.M)


@contextmanager
def s3_server() -> Iterator[str]:
    """A moto server with an empty bucket; yields its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    try:
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.stop()


def in_s3(url: str) -> dict[str, str]:
    """The variables of a store on such a server."""
    s3 = {"store": f"s3://{BUCKET}/bolt", "endpoint_url": url, "region": "us-east-1"}
    s3 |= {"access_key_id": KEY, "secret_access_key": SECRET}
    return {f"BOLT_{name.upper()}": value for name, value in s3.items()}


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
    with s3_server() as url:
        s3 = in_s3(url)
        with patch.dict(os.environ, s3):
            source, target = Store.open(Settings(store=str(folder))), Store.open(Settings.load())
        for path in source.list():
            with source.open_read(path) as file, target.open_write(path) as sink:
                while chunk := file.read(2**22):
                    sink.write(chunk)
        places = {"local": {"BOLT_STORE": str(folder.resolve())}}
        places["s3"] = s3
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
    parser = bench_parser(__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = {**surroundings(), **measure(given.store, given.rounds, Path(folder))}
    report(row, given.out)


if __name__ == "__main__":
    main()
