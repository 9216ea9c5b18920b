"""Two hosts with a Ray cluster: network namespaces that share only an S3 store and Prefect's server.

Each host has a work folder of its own at the same path. The first runs the flow, the cluster's head, Prefect and S3.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from runs import ROOT, ended, on_s3, started, wait_for
from small import SMALL

PREFECT, S3, RAY = 4200, 5000, 6379
QUERIES = 800  # so many that ledgers are copied, every ten seconds, before a shard is done
SETTINGS = (
    "config.cluster=ray",
    "config.serving.policy_servers=2",
    f"config.bootstrap.queries.draw.limit={QUERIES}",
    "config.bootstrap.shards=4",
    "config.evaluate.shards=2",
    "config.sft.checkpoint_minutes=0.01",
    "config.sft.checkpoint_copy_minutes=0.01",
)
WITHIN = """
mount -t tmpfs tmpfs "$1" && shift && exec "$@"
"""


class Hosts:
    """The two hosts; processes are started by the host's number, 0 or 1."""

    def __init__(self, names: Sequence[str], addresses: Sequence[str], place: Path, ray_folder: Path) -> None:
        self.names, self.addresses, self.place, self.ray_folder = names, addresses, place, ray_folder
        self.work = place / "work"
        for folder in (self.work, place / "prefect"):
            folder.mkdir()
        self.api_url, self.s3_url = f"http://{addresses[0]}:{PREFECT}/api", f"http://{addresses[0]}:{S3}"
        self.bucket = ""
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def environment(self) -> dict[str, str]:
        """Of a process on either host."""
        return {
            **on_s3(self.s3_url, self.bucket),
            "BOLT_WORK_DIR": str(self.work),
            "PREFECT_HOME": str(self.place / "prefect"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "RAY_ADDRESS": f"{self.addresses[0]}:{RAY}",
            "NO_PROXY": ",".join(self.addresses),
            "OMP_NUM_THREADS": "1",  # both hosts have the same cores
        }

    def start(self, name: str, host: int, *arguments: str, private: bool = False, **more: str) -> None:
        """Start `python ARGUMENTS` on a host, known as `name`. `private`: with an empty work folder of its own."""
        within = ["sh", "-c", WITHIN, "sh", str(self.work)] if private else []
        line = json.dumps(["ip", "netns", "exec", self.names[host], *within, sys.executable, *arguments])
        run = f"import json, os; command = json.loads({line!r}); os.execvp(command[0], command)"
        log = self.place / f"{name}.log"
        self.processes[name] = started(["-c", run], log, self.environment() | more)

    def serve(self) -> None:
        """Start S3 and Prefect on host 0."""
        self.start("s3", 0, "-m", "moto.server", "-H", self.addresses[0], "-p", str(S3))
        self.prefect()
        self.ask(f"{self.s3_url}/moto-api/data.json")
        done = self.within(f"from s3_for_tests import new_bucket; print(new_bucket({self.s3_url!r}))")
        self.bucket = done.strip()

    def prefect(self) -> None:
        """Start Prefect's server, and wait until it answers."""
        self.start("prefect", 0, "-m", "prefect", "server", "start", "--no-ui", "--host", self.addresses[0])
        self.ask(f"{self.api_url}/health")

    def ask(self, url: str) -> None:
        """Wait until an address answers on host 0."""
        code = f"import httpx; httpx.get({url!r}, timeout=5, trust_env=False).raise_for_status()"
        wait_for(lambda: self.run(code).returncode == 0, 90, 0.5)

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python code on host 0."""
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "infra")))
        command = ["ip", "netns", "exec", self.names[0], sys.executable, "-c", code]
        env = {**os.environ, **self.environment(), "PYTHONPATH": paths}
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)

    def within(self, code: str) -> str:
        """The output of Python code on host 0."""
        done = self.run(code)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def node(self, host: int, *, private: bool = True, **more: str) -> None:
        """Start a host's Ray node, and wait until the cluster has it. If `private`, host 1 has a work folder of its
        own, which is empty."""
        head = ["--head", f"--port={RAY}", "--include-dashboard=false", f"--temp-dir={self.ray_folder}"]
        options = head if host == 0 else [f"--address={self.addresses[0]}:{RAY}"]
        options += [f"--node-ip-address={self.addresses[host]}", "--num-cpus=2", f'--resources={{"host{host}": 1}}']
        options += ["--object-store-memory=134217728", "--disable-usage-stats", "--block"]
        command = ["-m", "ray.scripts.scripts", "start", *options]
        self.start(f"node{host}", host, *command, private=private and host == 1, **more)
        code = f"from infra.cluster.joined import living; assert living('{self.addresses[0]}:{RAY}') > {host}"
        wait_for(lambda: self.run(code).returncode == 0, 90, 0.5)

    def flow(self, *more: str) -> None:
        """Start the small method on the cluster."""
        assignments = [part for each in (*SMALL, *SETTINGS, *more) for part in ("--set", each)]
        self.start("flow", 0, "-m", "flows", "bolt/nano", *assignments)

    def finished(self) -> dict[str, Any]:
        """Wait for the flow; its summary."""
        status = ended(self.processes["flow"], 1200)
        text = (self.place / "flow.log").read_text()
        assert status == 0, text[-8000:]
        name = text.strip().splitlines()[-1].removeprefix(f"s3://{self.bucket}/some/prefix/")
        found: dict[str, Any] = json.loads(self.object(name))
        return found

    def object(self, name: str) -> str:
        """An object in the store; "" if it is gone."""
        return self.within(
            "from s3_for_tests import boto_client\n"
            f"client = boto_client({self.s3_url!r})\n"
            "try:\n"
            f"    print(client.get_object(Bucket={self.bucket!r}, Key='some/prefix/{name}')['Body'].read().decode())\n"
            "except client.exceptions.NoSuchKey:\n"
            "    print()"
        )

    def objects(self, prefix: str) -> list[str]:
        """The names of all objects below a prefix in the store."""
        code = (
            "from s3_for_tests import boto_client\n"
            f"pages = boto_client({self.s3_url!r}).get_paginator('list_objects_v2')\n"
            f"for page in pages.paginate(Bucket={self.bucket!r}, Prefix='some/prefix/{prefix}'):\n"
            "    for each in page.get('Contents', []): print(each['Key'])"
        )
        return [line.removeprefix("some/prefix/") for line in self.within(code).splitlines()]

    def ledger(self) -> dict[str, Any]:
        """What the copies of the ledgers in the store have of the responses: samples by the request's id."""
        lines = [line for name in self.objects("ledgers/responses-") for line in self.object(name).splitlines() if line]
        records = map(json.loads, lines)
        return {each["id"]: [sample["text"] for sample in each["record"]["samples"]] for each in records}

    def server(self, role: str) -> int | None:
        """The process of a server of this role that is up; None if there is none."""
        for host in (0, 1):
            for pid in self.pids(host, f"--served-model-name {role}"):
                line = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                place = f"{line[line.index('--host') + 1]}:{line[line.index('--port') + 1]}"
                if self.run(f"import httpx; httpx.get('http://{place}/health', trust_env=False)").returncode == 0:
                    return pid
        return None

    def kill_server(self, step: str, role: str) -> None:
        """Wait until a shard of a step has begun, and kill a server of this role."""
        wait_for(lambda: self.objects(f"claims/{step}-"), 900, 0.2)
        os.kill(wait_for(lambda: self.server(role), 300), signal.SIGKILL)

    def pids(self, host: int, words: str = "") -> list[int]:
        """The processes of a host whose command line has these words."""
        found = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True).stdout.split()
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in found}
        return [
            int(pid) for pid, path in lines.items() if path.exists() and words in path.read_text().replace("\0", " ")
        ]

    def kill(self, host: int, words: str = "") -> None:
        """Kill these processes of a host, all at once."""
        for pid in self.pids(host, words):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        """End all processes of both hosts."""
        for host in (0, 1):
            while self.pids(host):
                self.kill(host)
                time.sleep(0.1)
        for process in self.processes.values():
            process.wait()


AHEAD = """
import ctypes, datetime, gc, time
seconds, nanoseconds, now, utcnow = time.time, time.time_ns, datetime.datetime.now, datetime.datetime.utcnow
time.time, time.time_ns = lambda: seconds() + 3600, lambda: nanoseconds() + 3600 * 10**9
hour, methods = datetime.timedelta(hours=1), gc.get_referents(datetime.datetime.__dict__)[0]
methods["now"] = classmethod(lambda _, tz=None: now(tz) + hour)
methods["utcnow"] = classmethod(lambda _: utcnow() + hour)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
"""


def clock_ahead(folder: Path) -> dict[str, str]:
    """The environment of Python processes whose clock is an hour ahead; only the monotonic one is right.

    The clock of Ray's own C++ stays right: under libfaketime, most of its workers died as they started.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(AHEAD)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def two_hosts(place: Path, number: int, *, private: bool = True, **second: str) -> Iterator[Hosts]:
    """Two hosts with a Ray node each, S3 and Prefect on the first. Skips the test where no namespaces can be made.

    `private`: the second host has a work folder of its own. `second`: environment variables of its Ray node.
    """
    names = [f"ray{os.getpid()}x{number}{side}" for side in "ab"]
    addresses = [f"10.214.{number}.{host}" for host in (1, 2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable0", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "cable0", "up")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        with TemporaryDirectory(prefix="bolt-ray-") as ray_folder:  # a socket's path must be short
            hosts = Hosts(names, addresses, place, Path(ray_folder))
            try:
                hosts.serve()
                hosts.node(0)
                hosts.node(1, private=private, **second)
                yield hosts
            finally:
                hosts.close()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
