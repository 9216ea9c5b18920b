"""Kills of the kinds of processes that no other small test covers: Prefect server, worker, rank, torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.states import Crashed
from pydantic import BaseModel
from runs import ROOT, PrefectServer, ended, fake, started, wait_for
from s3_for_tests import free_port
from small import bootstrap_parameters, small_world

from flows.rerun import LABEL
from infra.operations.inventory import artifacts, problems
from infra.processes.torchrun import TrainerError, launch
from infra.processes.watchdog import _descendants
from infra.settings import Settings
from infra.store.store import Store


class Killable(PrefectServer):
    """A Prefect server that can be killed, and started again with its database."""

    def start(self) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "BOLT_"))}
        port = self.url.split(":")[2].split("/")[0]
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", port]
        with (self.home / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=kept | self.environment(), stdout=log, stderr=log, cwd=self.home, start_new_session=True
            )
        wait_for(self.healthy, 120)
        return process

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Killable, list[subprocess.Popen[bytes]]]]:
    (tmp_path / "prefect").mkdir()
    killable = Killable(tmp_path / "prefect", f"http://127.0.0.1:{free_port()}/api")
    running = [killable.start()]
    yield killable, running
    kill(running[-1])


@pytest.mark.faults
def test_the_prefect_server_is_killed_during_a_run(server, tmp_path):
    """Whether that run succeeds is Prefect's own matter; the same command resumes from what was finished."""
    killable, running = server
    environment = killable.environment() | {"BOLT_STORE": str(tmp_path / "store"), "BOLT_WORK_DIR": str(tmp_path / "w")}
    config = {"config": bootstrap_parameters(small_world(tmp_path / "files"))}
    run = fake("bootstrap", config, tmp_path, environment, "first")
    asked = tmp_path / "asked.txt"
    wait_for(lambda: asked.exists() and asked.read_text())
    kill(running[-1])
    running.append(killable.start())
    first = ended(run, 180)
    assert ended(fake("bootstrap", config, tmp_path, environment, "second"), 180) == 0
    requests = asked.read_text().split()
    assert len(requests) == len(set(requests)) == 12, f"the first run ended with {first}"
    assert_sound(tmp_path / "store")


FAKED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fake_flow import fake_answers
fake_answers(Path({asked!r}))
from flows.bootstrap import bootstrap
"""


def test_a_worker_is_killed_with_its_run_and_the_next_run_resumes(server, tmp_path):
    """The automation that marks the run as crashed is tested in tests/infra/operations/test_automations.py."""
    killable, _ = server
    environment = killable.environment() | {"BOLT_STORE": str(tmp_path / "store"), "BOLT_WORK_DIR": str(tmp_path / "w")}
    asked, flow = tmp_path / "asked.txt", tmp_path / "faked.py"
    flow.write_text(FAKED.format(tests=str(Path(__file__).parent), asked=str(asked)))

    def worker() -> subprocess.Popen[str]:
        words = ["-m", "prefect", "worker", "start", "--pool", "bolt-gpu", "--type", "process"]
        return started(words, tmp_path / "worker.log", environment)

    running = worker()
    try:
        with SyncPrefectClient(killable.url) as client:
            wait_for(client.read_work_pools)
            deployment = client.create_deployment(
                client.create_flow_from_name("bootstrap"),
                name="small",
                work_pool_name="bolt-gpu",
                entrypoint=f"{flow}:bootstrap",
                pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
                enforce_parameter_schema=False,
            )
            parameters = {"config": bootstrap_parameters(small_world(tmp_path / "files"))}
            run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
            wait_for(lambda: asked.exists() and asked.read_text())
            kill_with_descendants(running)
            finished, noted = in_ledgers(tmp_path / "w"), len(asked.read_text().split())
            client.set_flow_run_state(run.id, Crashed(message="its process vanished"), force=True)
            running = worker()
            assert ended(started(["-m", "flows", "rerun/scheduled"], tmp_path / "rerun.log", environment), 180) == 0
            again = client.read_flow_run(run.id)
            steps = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    finally:
        kill_with_descendants(running)
    assert (again.state_name, again.run_count, again.labels[LABEL]) == ("Completed", 2, 1)
    assert {step.state_name for step in steps if step.name.startswith("queries/")} == {"Completed", "Cached"}
    asked_again = asked.read_text().split()[noted:]
    assert finished
    assert not finished & set(asked_again)
    assert len(finished) + len(asked_again) == len(finished | set(asked_again)) == 12
    assert_sound(tmp_path / "store")


def in_ledgers(work: Path) -> set[str]:
    """The requests that a dead process had finished."""
    lines = [line for path in (work / "ledgers").glob("*.jsonl") for line in path.read_text().splitlines(True)[1:]]
    return {json.loads(line)["id"] for line in lines if line.endswith("\n")}


def kill_with_descendants(process: subprocess.Popen[str]) -> None:
    for pid in [process.pid, *_descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):  # it just ended
            os.kill(pid, signal.SIGKILL)
    process.wait()


def assert_sound(folder: Path) -> None:
    """Every artifact is whole, and no claim remains."""
    store = Store.open(Settings(store=str(folder)))
    assert [line for each in artifacts(store) for line in problems(store, each)] == []
    assert store.list("claims") == []


SLEEPS = "import time\ntime.sleep(120)\n"


class Nothing(BaseModel):
    """The parameters of a trainer that does nothing."""


@pytest.mark.parametrize("which", ["rank", "torchrun"])
def test_a_killed_rank_or_torchrun_is_an_error_and_leaves_nothing(which, tmp_path, monkeypatch):
    (tmp_path / "sleeping_trainer.py").write_text(SLEEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def words(pid: int) -> list[str]:
        return Path("/proc", str(pid), "cmdline").read_text().split("\0")

    def below() -> dict[str, list[int]]:
        found: dict[str, list[int]] = {"torchrun": [], "rank": []}
        for pid in _descendants(os.getpid()):
            line = words(pid)
            if "sleeping_trainer" in line and "infra/processes/watchdog.py" not in " ".join(line):
                found["torchrun" if "torch.distributed.run" in line else "rank"].append(pid)
        return found

    def strike() -> None:
        there = wait_for(lambda: (found := below()) and len(found["rank"]) == 2 and found)
        os.kill(there[which][0], signal.SIGKILL)

    striking = threading.Thread(target=strike)
    striking.start()
    with pytest.raises(TrainerError, match="sleeping_trainer on 2 ranks ended with status"):
        launch("sleeping_trainer", Nothing(), ranks=2, log_path=tmp_path / "train.log", timeout_s=100)
    striking.join()
    assert below() == {"torchrun": [], "rank": []}
