"""`python -m infra.cluster.local --nodes 2 COMMAND ...`: a Ray cluster on this machine for as long as a command runs.

Each node is a raylet of its own, with its share of the cores, and with an address of its own, since nodes that train
together are told apart by theirs. It is for trying things out: the nodes share this machine's memory and disks. A
cluster of machines is started with `ray start` on each of them (docs/scale.md).
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.cluster.joined import living
from infra.errors import BadInput
from infra.processes.openmp import thread_count
from infra.processes.watchdog import GuardedProcess
from infra.settings import PROJECT_ROOT, Settings

STARTED_S = 180.0
OBJECT_STORE_BYTES = 128 * 2**20  # what is exchanged is small: references, and the addresses of servers
HOST = "127.0.0.2"
"""The head's address; the next node has the next one. Ray takes 127.0.0.1 for the machine's outer address, and of nodes
that train together all have to be on loopback, or none."""


@contextmanager
def cluster(nodes: int, cores: float, logs: Path) -> Iterator[str]:
    """Ray nodes on this machine with `cores` each. Yields the address; all end with the block and with this process.

    Raises:
        BadInput: a node does not start; the message has its last log lines.
    """
    with socket.socket() as free:
        free.bind((HOST, 0))
        address = f"{HOST}:{free.getsockname()[1]}"
    with TemporaryDirectory(prefix="bolt-ray-") as folder, ExitStack() as started:  # a socket's path must be short
        for number in range(nodes):
            node = start(number, address, cores, Path(folder), logs)
            started.callback(node.stop)
            await_nodes(address, number + 1, node)
        yield address


def start(number: int, address: str, cores: float, folder: Path, logs: Path) -> GuardedProcess:
    """Start a node: number 0 is the head, which listens at `address`, the others join it."""
    port = address.rpartition(":")[2]
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    own = f"--node-ip-address={ipaddress.ip_address(HOST) + number}"
    options = [own, *(head if number == 0 else [f"--address={address}"])]
    size = [f"--num-cpus={cores:g}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        *options,
        *size,
        "--disable-usage-stats",
        "--block",
    ]
    # Without a number of threads, each node would take all of this machine's cores.
    environment = {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": thread_count(max(1, int(cores)))}
    return GuardedProcess(command, log_path=logs / f"ray-node-{number}.log", env=environment)


def await_nodes(address: str, count: int, newest: GuardedProcess) -> None:
    """Wait until `count` nodes live. Raises `BadInput` if the newest one ended, or takes too long."""
    deadline, last = time.monotonic() + STARTED_S, ""
    while time.monotonic() < deadline and newest.poll() is None:
        try:
            if living(address) >= count:
                return
        except (RuntimeError, OSError) as error:  # it does not listen yet
            last = str(error)
        time.sleep(0.2)
    raise BadInput(f"Ray node {count - 1} did not start within {STARTED_S:g} s: {last} {newest.tail()}")


def main(argv: list[str]) -> int:
    """Run a command with RAY_ADDRESS set, and end the cluster with it. Returns the command's exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.cluster.local", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--nodes", type=int, default=2, help="number of nodes (default: 2)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    given = parser.parse_args(argv)
    if given.nodes < 1 or not given.command:
        parser.error("give a number of nodes from 1 on, and a command")
    cores = max(1, len(os.sched_getaffinity(0)) // given.nodes)
    logs = Settings.load().work_dir.resolve() / "logs"
    with cluster(given.nodes, cores, logs) as address:
        return subprocess.run(given.command, env={**os.environ, "RAY_ADDRESS": address}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
