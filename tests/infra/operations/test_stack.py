"""`make up` for real: server, workers, deployments, automations; a run that failed or lost its worker is rerun."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import yaml
from playwright.sync_api import Browser, expect
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter
from small import SMALLEST, command_lines

from flows.__main__ import changed, deployment, flow_name
from flows.rerun import LABEL
from infra.operations.automations import VANISHED_S
from infra.operations.stack import POOLS, Stack
from infra.settings import PROJECT_ROOT

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]
DEPLOYMENTS = yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_text())["deployments"]
SMALL = ["queries.draw.limit=24", "shards=1", "generate.samples=4", "generate.max_truncated_share=1"]


class Local:
    """A stack for the test, in its own folder and on a free port."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.home = folder, folder / "stack"
        own = {"BOLT_STORE": str(folder / "store"), "BOLT_WORK_DIR": str(folder / "work"), **env}
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("BOLT_", "PREFECT_"))}
        self.env |= own

    def call(self, *words: str, given: str = "", **env: str) -> str:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, cwd=PROJECT_ROOT, env=self.env | env, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
        return done.stdout

    def up(self) -> str:
        output = self.call("infra.operations.stack", "up", "--home", str(self.home), "--port", "0")
        with (
            self.client() as client
        ):  # the tests start `rerun` themselves; each deployment activates its schedule again
            each = client.read_deployment_by_name("rerun/scheduled")
            client.update_deployment_schedule(each.id, each.schedules[0].id, active=False)
        return output

    def down(self) -> str:
        return self.call("infra.operations.stack", "down", "--home", str(self.home))

    @property
    def stack(self) -> Stack:
        return Stack.model_validate_json((self.home / "stack.json").read_text())

    def client(self) -> SyncPrefectClient:
        return SyncPrefectClient(self.stack.url)

    def run(self, name: str, parameters: dict[str, Any]) -> UUID:
        """`prefect deployment run`, as a user would."""
        own = {"PREFECT_API_URL": self.stack.url, "PREFECT_HOME": str(self.folder / "cli")}
        output = self.call("prefect", "deployment", "run", name, "--params", "-", given=json.dumps(parameters), **own)
        return UUID(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", output)[0])

    def until(self, run_id: UUID, fits: Callable[[FlowRun], bool], seconds: float) -> FlowRun:
        end = time.monotonic() + seconds
        with self.client() as client:
            while True:
                run = client.read_flow_run(run_id)
                if fits(run):
                    return run
                log = (self.home / "stack" / "worker-of-bolt-gpu.log").read_text()
                assert time.monotonic() < end, f"after {seconds} s it is {run.state}; the worker says: {log[-6000:]}"
                time.sleep(1)

    def ended(self, run_id: UUID, seconds: float = 300) -> FlowRun:
        return self.until(run_id, lambda run: run.state is not None and run.state.is_final(), seconds)

    def artifacts(self) -> list[dict[str, Any]]:
        with self.client() as client:
            found: list[dict[str, Any]] = client.request("POST", "/artifacts/filter", json={}).json()
        return found

    def task_states(self, run_id: UUID) -> dict[str, str]:
        """The state of each step's last task run, by step."""
        with self.client() as client:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
        runs.sort(key=lambda run: str(run.start_time))
        return {run.name.split("/")[0]: str(run.state_name) for run in runs}


@pytest.fixture(scope="module")
def posted() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook: its URL, and what was posted to it."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook/secret-token-of-the-webhook", bodies
    server.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, posted: tuple[str, Any]) -> Iterator[Local]:
    found = Local(tmp_path_factory.mktemp("local"), BOLT_WEBHOOK_URL=posted[0])
    try:
        assert "Prefect's UI: http://127.0.0.1:" in found.up()
        yield found
    finally:
        found.down()


def small_bootstrap(reward_model: Path, *more: str) -> dict[str, Any]:
    assignments = [*SMALL, f"reward_model={reward_model}", *more]
    parameters = deployment("bootstrap/nano")["parameters"]
    return changed(parameters, [f"config.{each}" for each in assignments])


@contextmanager
def servers_killed(model: str) -> Iterator[None]:
    """Kill every vLLM server of a model as soon as it starts: a failure that a rerun may not meet."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.2):
            for pid, line in command_lines([model]):
                if "vllm.entrypoints" in line:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


def test_everything_is_deployed_with_the_parameters_descriptions(local: Local) -> None:
    with local.client() as client:
        names = {f"{flow_name(each)}/{each['name']}" for each in DEPLOYMENTS}
        found = {name: client.read_deployment_by_name(name) for name in names}
        pools = {pool.name: pool.concurrency_limit for pool in client.read_work_pools()}
    assert pools == dict.fromkeys(POOLS, 1)
    without_a_model = {"mine/nano", *(name for name in names if name.startswith("publish/"))}
    assert {name: each.work_pool_name for name, each in found.items()} == {
        name: "bolt-cpu" if name in without_a_model else "bolt-rerun" if name == "rerun/scheduled" else "bolt-gpu"
        for name in names
    }
    assert [name for name, each in found.items() if each.schedules] == ["rerun/scheduled"]
    for name, each in found.items():
        definitions = each.parameter_openapi_schema["definitions"]
        for definition in definitions.values():
            for field, schema in definition.get("properties", {}).items():
                inner = definitions.get(
                    schema.get("$ref", "").rpartition("/")[2], {}
                )  # an equal description is omitted
                assert schema.get("description") or inner.get("description"), (name, definition["title"], field)


def test_a_second_make_up_finds_it_running(local: Local) -> None:
    before = local.stack
    assert str(before.processes["server"].pid) in local.up()
    assert local.stack == before
    with local.client() as client:
        automations = client.read_automations_by_name("bolt: a run's process vanished")
        # On an update, Prefect forgets which heartbeats it is waiting for, so a vanished run would never be found.
        updates = client.read_events(EventFilter(event=EventNameFilter(name=["prefect.automation.updated"])), limit=50)
    assert updates.events == []
    assert [automation.enabled for automation in automations] == [True]


def test_a_stage_that_failed_is_rerun_and_finds_the_earlier_steps_cached(
    local: Local, tmp_path: Path, posted: tuple[str, list[dict[str, Any]]]
) -> None:
    reward = tmp_path / "reward-that-is-killed"
    shutil.copytree(PROJECT_ROOT / "nano" / "models" / "reward", reward)
    parameters = changed(deployment("bolt/nano")["parameters"], [*SMALLEST, f"config.reward_model={reward}"])
    with servers_killed(reward.name):
        run_id = local.run("bolt/nano", parameters)
        failed = local.ended(run_id, 600)
    assert failed.state_name == "Failed"
    assert "ServerError: vLLM server of" in str(failed.state and failed.state.message)
    before = local.task_states(run_id)
    assert (before["responses"], before["filtered"], before["scores"]) == ("Completed", "Completed", "Failed")

    rerun_id = local.run("rerun/scheduled", {"config": {"max_reruns": 1}})
    assert local.ended(rerun_id, 900).state_name == "Completed"
    again = local.ended(run_id)
    assert (again.state_name, again.run_count, again.labels[LABEL]) == ("Completed", 2, 1)
    after = local.task_states(run_id)
    assert after | dict.fromkeys(("scores", "longcot", "sft", "dpo-1", "grades-online-1-greedy"), "Completed") == after
    earlier = ("examples", "queries", "answers-instruct-sampled", "answers-in-context-greedy", "responses", "filtered")
    assert {after[step] for step in earlier} == {"Cached"}
    names = {artifact["key"] for artifact in local.artifacts()}
    assert names >= {"bolt-summary", "bolt-stages", "bolt-report", "rerun", "progress-sft"}

    alerts = [(body["flow"], body["state"]) for body in posted[1]]
    assert alerts == [("bolt", "Failed"), ("bolt", "Completed"), ("rerun", "Completed")]
    for path in [*local.home.rglob("*.log"), *(local.folder / "work").rglob("*.log")]:
        assert "secret-token-of-the-webhook" not in path.read_text(errors="replace"), path
    with local.client() as client:
        logs = client.request("POST", "/logs/filter", json={"limit": 200}).text
    artifacts = json.dumps(local.artifacts())
    assert "secret-token" not in logs + artifacts
    assert "rerun: Completed" in artifacts.replace("\\", "")


def test_prefects_ui_shows_run_artifact_and_form(local: Local, browser: Browser) -> None:
    with local.client() as client:
        run = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["bolt"])))[0]
        deployed = client.read_deployment_by_name("bolt/nano")
        wanted = {"artifacts": {"key": {"any_": ["rerun", "bolt-stages", "bolt-plots"]}}}
        latest = client.request("POST", "/artifacts/latest/filter", json=wanted).json()
        latest_ids = {each["key"]: each["latest_id"] for each in latest}
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    address = local.stack.url.removesuffix("/api")

    page.goto(f"{address}/runs/flow-run/{run.id}")
    expect(page.get_by_text(run.name).first).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Completed").first).to_be_visible()
    page.goto(f"{address}/artifacts")
    expect(page.get_by_text("rerun", exact=True).first).to_be_visible(timeout=30_000)
    for key, shown in (("rerun", run.name), ("bolt-stages", "online-1"), ("bolt-plots", "Accuracy and response")):
        page.goto(f"{address}/artifacts/artifact/{latest_ids[key]}")
        expect(page.get_by_text(shown).first).to_be_visible(timeout=30_000)
    expect(page.locator("img[src^='data:image/svg+xml']").first).to_be_visible(timeout=30_000)
    page.goto(f"{address}/deployments/deployment/{deployed.id}/run")
    expect(page.get_by_text("Instruct model: a local folder").first).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Number of samples per query (BOLT: 8).").first).to_be_attached()
    assert "nano/models/instruct" in page.locator("textarea, input").evaluate_all(
        "all => all.map((each) => each.value)"
    )
    assert errors == []
    page.close()


def test_a_run_whose_worker_was_killed_is_found_and_rerun(local: Local) -> None:
    parameters = small_bootstrap(PROJECT_ROOT / "nano" / "models" / "reward", "generate.seed=5")
    run_id = local.run("bootstrap/nano", parameters)
    local.until(run_id, lambda _: "queries" in local.task_states(run_id), 120)
    worker = local.stack.processes["worker of bolt-gpu"]
    for process in worker.members():
        os.kill(process.pid, signal.SIGKILL)
    assert local.up()  # the worker again, and nothing else
    assert local.stack.processes["worker of bolt-gpu"].pid != worker.pid
    crashed = local.ended(run_id, VANISHED_S + 90)
    assert (crashed.state_name, crashed.run_count) == ("Crashed", 1)
    assert "its process vanished" in str(crashed.state and crashed.state.message)
    assert local.ended(local.run("rerun/scheduled", {"config": {}})).state_name == "Completed"
    assert local.ended(run_id).state_name == "Completed"


def test_make_down_ends_all_of_it(local: Local) -> None:
    members = [each.pid for process in local.stack.processes.values() for each in process.members()]
    url = local.stack.url
    assert "server" in local.down()
    assert [pid for pid in members if Path(f"/proc/{pid}").exists()] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    assert local.down() == "nothing was running\n"
