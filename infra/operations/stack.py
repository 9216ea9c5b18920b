"""The local stack: a Prefect server, one worker per work pool, the deployments of prefect.yaml, the automations.

`make up` and `make down` call `python -m infra.operations.stack up|down`. Its files are in one folder (`.bolt`):
`stack.json` lists the running processes with their start times, so that no other process is ever ended. `stack/` has
the database and the logs.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import getproxies

import httpx
import psutil
from pydantic import BaseModel

from infra.errors import BadInput
from infra.operations.automations import make_automations
from infra.processes.identity import began, boot
from infra.proxies import spare_loopback, sparing_loopback
from infra.settings import PROJECT_ROOT

HOST = "127.0.0.1"
PORT = 4200
POOLS = ("bolt-gpu", "bolt-cpu", "bolt-rerun")
"""Work pools, one run at a time in each: runs of `bolt-gpu` would compete for the devices, runs of `bolt-cpu` for the
cores, and `bolt-rerun` waits for both."""
SERVER = "server"
HEALTHY_S = 180.0  # maximum time for the server to become healthy
END_S = 45.0  # maximum time for processes to end after SIGTERM: a flow ends its own servers first
DATABASE = ("PREFECT_API_DATABASE_", "PREFECT_SERVER_DATABASE_")  # for the server only: may contain a password


class StackError(RuntimeError):
    """The stack cannot be started; the text says why and how to fix it."""


class Process(BaseModel, frozen=True):
    """One process of the stack, the leader of its own session, identified by its id and start time."""

    pid: int
    began: int
    boot: str

    def alive(self) -> bool:
        """Whether this very process runs, and not a later one with the same id."""
        return boot() == self.boot and began(self.pid) == self.began and _lives(self.pid)

    def members(self) -> list[psutil.Process]:
        """The living processes of its session, itself included; none if its id now belongs to a later process."""
        if boot() != self.boot or began(self.pid) not in (None, self.began):
            return []
        found = (each for each in psutil.process_iter() if _session(each.pid) == self.pid)
        return [each for each in found if (began(each.pid) or 0) >= self.began and _lives(each.pid)]

    def end(self) -> None:
        """Send SIGTERM to its session, wait at most `END_S` seconds, then kill the processes that remain."""
        members = self.members()
        for each in members:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGTERM)
        _, remaining = psutil.wait_procs(members, timeout=END_S)
        for each in {*remaining, *self.members()}:
            with suppress(psutil.NoSuchProcess):
                each.kill()


class Stack(BaseModel):
    """The running processes and the URL of the server's API: the content of `stack.json`."""

    url: str
    processes: dict[str, Process] = {}


def _session(pid: int) -> int | None:
    with suppress(ProcessLookupError, PermissionError):
        return os.getsid(pid)
    return None


def _lives(pid: int) -> bool:
    """Whether a process exists and is not a zombie. In a container whose init reaps no children, zombies stay."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def up(home: Path, port: int | None = None) -> Stack:
    """Start the processes that are not running, deploy everything, and return the running stack. May be called again.

    Args:
        home: folder for the state, the database and the logs.
        port: the server's port; if omitted, the last one, or 4200 the first time; 0 picks a free one.

    Raises:
        StackError: the port is taken, the server does not become healthy, or the deployments are refused.
    """
    with _locked(home):
        stack = _read(home)
        if stack is None or not _running(stack, SERVER):
            stack = _with_server(home, stack, port)
        _wait_until_healthy(home, stack)
        _make_pools(stack.url)
        make_automations(stack.url)
        _deploy(home, stack.url)
        for pool in POOLS:
            if not _running(stack, f"worker of {pool}"):
                command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
                stack = _started(home, stack, f"worker of {pool}", command)
        return stack


def down(home: Path) -> list[str]:
    """End what `up` started and return its names. Workers go first, so that their runs can report how they ended."""
    with _locked(home):
        stack = _read(home)
        if stack is None:
            return []
        ran = [name for name, process in stack.processes.items() if process.members()]
        for name in sorted(stack.processes, key=lambda name: name == SERVER):
            stack.processes[name].end()
        _state(home).unlink()
        return ran


def _with_server(home: Path, last: Stack | None, port: int | None) -> Stack:
    """Start the server. Workers of the previous server are kept if the address is the same, and ended otherwise."""
    if port is None:
        port = int(last.url.split(":")[2].split("/")[0]) if last else PORT
    port = _free_port(port)
    stack = Stack(url=f"http://{HOST}:{port}/api")
    for process in last.processes.values() if last else ():
        if last and last.url != stack.url:
            process.end()
    if last and last.url == stack.url:
        stack = last
    return _started(home, stack, SERVER, ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)])


def _started(home: Path, stack: Stack, name: str, command: list[str]) -> Stack:
    with _log(home, name).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=PROJECT_ROOT,
            env=environment(home, stack.url, server=name == SERVER),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    since = began(process.pid)
    assert since is not None  # it is our child: if it has ended, it is a zombie
    processes = {**stack.processes, name: Process(pid=process.pid, began=since, boot=boot())}
    if (last := stack.processes.get(name)) and last.members():  # a killed worker's run continues: `down` ends it too
        processes[f"{name} before, process {last.pid}"] = last
    stack = stack.model_copy(update={"processes": processes})
    temporary = _state(home).with_suffix(".tmp")
    temporary.write_text(stack.model_dump_json(indent=1))
    temporary.replace(_state(home))
    return stack


def environment(home: Path, url: str, *, server: bool) -> dict[str, str]:
    """Environment variables of the stack's processes: ours, with their own Prefect settings. Only the server gets the
    database's."""
    own = {
        "PREFECT_HOME": str(home.resolve() / "stack"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if server or not name.startswith(DATABASE)}
    return {**inherited, **sparing_loopback(inherited), **own}


def _wait_until_healthy(home: Path, stack: Stack) -> None:
    end = time.monotonic() + HEALTHY_S
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{stack.url}/health", timeout=5).status_code == 200:
                return
        if not _running(stack, SERVER):
            raise StackError(f"the Prefect server ended; {_log_tail(home, SERVER)}")
        if time.monotonic() > end:
            raise StackError(f"the Prefect server is not healthy after {HEALTHY_S:g} s; {_log_tail(home, SERVER)}")
        time.sleep(0.2)


def _make_pools(url: str) -> None:
    """Create the work pools that do not exist."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with SyncPrefectClient(url) as client:
        existing = {pool.name for pool in client.read_work_pools()}
        for name in POOLS:
            if name not in existing:
                pool = WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=1)
                client.create_work_pool(pool)


def _deploy(home: Path, url: str) -> None:
    with _log(home, "deploy").open("wb") as log:
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(
            command,
            cwd=PROJECT_ROOT,
            env=environment(home, url, server=False),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise StackError(f"prefect deploy --all ended with status {done.returncode}; {_log_tail(home, 'deploy')}")


def _running(stack: Stack, name: str) -> bool:
    return name in stack.processes and stack.processes[name].alive()


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StackError(
                f"port {port} on {HOST} is taken: end the process that uses it, or make up PORT=0"
            ) from error
        return int(probe.getsockname()[1])


def _state(home: Path) -> Path:
    return home / "stack.json"


def _log(home: Path, name: str) -> Path:
    return home / "stack" / f"{name.replace(' ', '-')}.log"


def _log_tail(home: Path, name: str) -> str:
    lines = _log(home, name).read_text(errors="replace").splitlines()
    return f"log: {_log(home, name)}; its last lines:\n" + "\n".join(lines[-20:])


def _read(home: Path) -> Stack | None:
    return Stack.model_validate_json(_state(home).read_text()) if _state(home).exists() else None


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Allow one `up` or `down` at a time."""
    (home / "stack").mkdir(parents=True, exist_ok=True)
    with (home / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.operations.stack", description="Start or end the local Prefect stack."
    )
    parser.add_argument("what", choices=["up", "down"])
    parser.add_argument("--home", type=Path, default=Path(".bolt"), help="folder for state, database and logs")
    parser.add_argument("--port", type=int, help="server port (default: the last one, at first 4200; 0: a free one)")
    given = parser.parse_args(argv)
    if given.port is not None and not 0 <= given.port < 2**16:
        parser.error(f"--port {given.port}: expected a number from 0 to 65535")
    shell = {name: value for name, value in sparing_loopback(os.environ).items() if os.environ.get(name) != value}
    if given.what == "down":
        ran = down(given.home)
        print(f"ended: {', '.join(ran)}" if ran else "nothing was running")
        return 0
    try:
        spare_loopback()
        stack = up(given.home, given.port)
    except (StackError, BadInput) as error:
        print(f"make up: {error}", file=sys.stderr)
        return 1
    for name, process in stack.processes.items():
        print(f"{name:22} pid {process.pid}, log {_log(given.home, name)}")
    exports = {"PREFECT_API_URL": stack.url} | (shell if getproxies() else {})
    named = " ".join(f"{name}={value}" for name, value in exports.items())
    print(f"Prefect's UI: {stack.url.removesuffix('/api')}\nfor your shell: export {named}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
