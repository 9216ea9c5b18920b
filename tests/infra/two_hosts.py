"""Two machines to train on: network namespaces joined by a cable, or, without the right to make them, two loopback
addresses of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.settings import PROJECT_ROOT

DRIVER = """
import json, sys
from pathlib import Path
from pydantic import BaseModel, ConfigDict
from infra.processes.torchrun import TrainerError
from infra.training.config import SftConfig
from infra.training.hosts import Hosts
from infra.training.nodes import launch
given = json.loads(sys.argv[1])
class Plain(BaseModel):
    model_config = ConfigDict(extra="allow")
kind = SftConfig if given["module"] == "infra.training.sft" else Plain
try:
    launch(given["module"], kind(**given["config"]), ranks=given["ranks"], log_path=Path(given["log"]),
           hosts=Hosts(**given["hosts"]), folder=Path(given["folder"]))
except (TrainerError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class TwoHosts:
    """Two addresses, and how to start a process on either."""

    def __init__(self, addresses: tuple[str, str], prefixes: tuple[Sequence[str], Sequence[str]], folder: Path) -> None:
        self.addresses, self._prefixes, self.folder = addresses, prefixes, folder
        self._started: list[subprocess.Popen[str]] = []

    def start(self, host: int, *arguments: str, log: Path) -> subprocess.Popen[str]:
        """A Python process on one of the hosts; its output goes to `log`."""
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
        environment = kept | {"PYTHONPATH": f"{PROJECT_ROOT}:{self.folder}"}
        with log.open("a") as out:
            process = subprocess.Popen(
                [*self._prefixes[host], sys.executable, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                cwd=PROJECT_ROOT,
            )
        self._started.append(process)
        return process

    def agent(self, folder: Path | None = None, node: int = 1) -> subprocess.Popen[str]:
        """The second host's agent."""
        where = ["--node-rank", str(node), "--folder", str(folder or self.folder)]
        return self.start(1, "-m", "infra.training.node", *where, log=self.folder / "agent.out")

    def launch(
        self, module: str, config: dict[str, Any], log: Path, *, ranks: int = 1, **hosts: Any
    ) -> subprocess.Popen[str]:
        """A flow's side, on the first host, which trains on both. Its last words are in `log` with the suffix .out."""
        log.parent.mkdir(parents=True, exist_ok=True)
        given = {"module": module, "config": config, "ranks": ranks, "log": str(log), "folder": str(self.folder)}
        given["hosts"] = {"hosts": self.addresses, "lost_after_s": 30, "join_timeout_s": 60, **hosts}
        return self.start(0, "-c", DRIVER, json.dumps(given, default=str), log=log.with_suffix(".out"))

    def close(self) -> None:
        """End what was started."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Two hosts that share `folder`, which also has modules for their ranks to run."""
    names = [f"bolt{os.getpid()}{side}" for side in "ab"]
    addresses = ("10.213.7.1", "10.213.7.2")
    try:
        spaced = _ip("netns", "add", names[0]) and _ip("netns", "add", names[1]) and _joined(names, addresses)
        if spaced:
            hosts = TwoHosts(addresses, tuple(["ip", "netns", "exec", name] for name in names), folder)  # type: ignore[arg-type]
        else:
            hosts = TwoHosts(("127.0.0.1", "127.0.0.2"), ([], []), folder)
        try:
            yield hosts
        finally:
            hosts.close()
    finally:
        for name in names:
            _ip("netns", "del", name)


def _joined(names: Sequence[str], addresses: Sequence[str]) -> bool:
    done = _ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable0", "netns", names[1])
    for name, address in zip(names, addresses, strict=True):
        done = done and _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable0")
        done = done and _ip("-n", name, "link", "set", "lo", "up") and _ip("-n", name, "link", "set", "cable0", "up")
    return done and subprocess.run(["ip", "netns", "exec", names[0], "true"], capture_output=True).returncode == 0


def _ip(*arguments: str) -> bool:
    try:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:  # no iproute2 here
        return False
