"""`rerun` against a real Prefect server: which runs are rerun, how often, in which order, and the report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.states import Completed, Crashed, Failed, Pending, Running

import flows.rerun
from flows.rerun import LABEL, Outcome, RerunConfig, report, rerun, why_permanent
from infra.text.markdown import plain

FAILED = "Flow run encountered an exception: "
TRANSIENT = FAILED + "ServerError: vLLM server of imported/reward ended with status 1; log: ..."


@pytest.mark.parametrize(
    "message",
    [
        TRANSIENT,
        FAILED + "TrainerError: infra.training.sft on 2 ranks ended with status 1; log: ...",
        FAILED + "StoreError: artifact store s3://b: cannot read x: the endpoint cannot be reached. Check ...",
        FAILED + "StoreError: artifact store s3://b: cannot read x: the server is overloaded or failing. Try ...",
        FAILED + "BadArtifact: artifact scores/k was made again with other content",
        FAILED + "ConnectTimeout: ",
        FAILED + "RemoteProtocolError: Server disconnected without sending a response.",
        FAILED + "ConnectionResetError: [Errno 104] Connection reset by peer",
        FAILED + "TimeoutError: ",
        FAILED + "_TransientError: request 1: the server answered 503: busy",
        FAILED + "ConnectionError: org/name@v1:train: the hub cannot be reached",
        FAILED + "CodeChangedError: tasks/responses/filter.py was changed while this run was under way: start it again",
        FAILED + "TrainerError: ... its last lines:\n[rank1]: RuntimeError: Connection closed by peer (NCCL)",
        FAILED + "PrefectHTTPStatusError: Server error '503 Service Unavailable' for url ...",
        # vLLM logs how much memory it has at every start
        TRANSIENT + "\nINFO 11-25 10:12:34 [gpu_worker.py:759] Available KV cache memory: 38.77 GiB",
        TRANSIENT
        + "\nINFO Free memory on device (78/79 GiB) on startup. Desired GPU memory utilization is (0.9, 71 GiB).",
        TRANSIENT
        + "\nWARNING checkpoint total size exceeds 80% of available RAM. This may cause out-of-memory errors.",
    ],
)
def test_errors_that_may_be_transient_are_rerun(message):
    assert why_permanent(StateType.FAILED, message) is None


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (FAILED + "ValueError: model 'x': no such folder", "ValueError is not known to be transient"),
        (FAILED + "BadInput: q.jsonl, row 3: ConnectionError is a word of the user's", "BadInput"),
        (FAILED + "FileNotFoundError: input file x does not exist", "FileNotFoundError"),
        (FAILED + "TruncationError: 9 of 10 samples were cut at max_tokens", "TruncationError"),
        (FAILED + "CompletionError: request 1: the server answered 400: too long", "CompletionError"),
        (FAILED + "StoreError: artifact store s3://b: cannot write p: the credentials are wrong or expired.", "store"),
        (FAILED + "StoreError: artifact store /a: cannot write p: no room is left. Free some", "the store's error"),
        (FAILED + "ServerError: vLLM server of m ended with status 1; ... CUDA out of memory. Tried", "out of memory"),
        (FAILED + "TrainerError: ... torch.OutOfMemoryError: ...", "out of memory"),
        (FAILED + "MemoryError: ", "out of memory"),
        (
            FAILED + "ServerError: ... larger than the available KV cache memory (2 GiB)",
            "out of memory",
        ),
        (
            FAILED + "ServerError: ... memory is less than desired GPU memory utilization (0.9)",
            "out of memory",
        ),
        (FAILED + "ServerError: ... api_server.py: error: unrecognized arguments: --no-such", "a mistake"),
        (
            FAILED + "TrainerError: ... lines:\n[rank0]: ValueError: 3 of 10 rows exceed max_length",
            "a mistake",
        ),
        (
            FAILED + "TrainerError: ... lines:\n[rank0]: infra.errors.GuardError: step 2 of 9: the loss is nan",
            "a mistake",
        ),
        (FAILED + "GuardError: the policy after iteration 1: malformed share is 0.4", "GuardError"),
        (
            FAILED + "ServerError: ... lines:\npydantic_core._pydantic_core.ValidationError: 1",
            "a mistake",
        ),
        ("Validation of flow parameters failed with error: ParameterTypeError", "an unnamed error is not"),
        ("", "an unnamed error is not"),
    ],
)
def test_permanent_errors_are_not_rerun_and_the_reason_is_given(message, why):
    assert why in str(why_permanent(StateType.FAILED, message))


def test_a_crash_may_be_transient_unless_memory_ran_out():
    assert why_permanent(StateType.CRASHED, "its process vanished: no heartbeat in 120 s") is None
    assert "out of memory" in str(why_permanent(StateType.CRASHED, "interrupted by ...: MemoryError: "))
    container = "Process exited with status code: 137; the process was killed, e.g. out-of-memory (OOM)"
    assert "out of memory" in str(why_permanent(StateType.CRASHED, container))


def test_foreign_text_is_escaped_in_the_table():
    text = "| <script>alert(1)</script> [a](http://b) `c` **d**\n\n# e | \\"
    row = report([Outcome("otter", text, "0", "x" * 400)]).splitlines()
    assert len(row) == 3
    cell = plain(text)
    assert cell.startswith(r"\| \<script\>alert\(1\)\<\/script\> \[a\]\(http\:\/\/b\) \`c\` \*\*d\*\* \# e \| ")
    assert cell.endswith("\\\\")
    assert row[2].endswith("x" * 300 + r" \.\.\. |")


# ---- with a server: a thread stands in for the worker


@pytest.fixture
def client(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setattr(flows.rerun, "POLL_S", 0.05)
    with get_client(sync_client=True) as found:
        yield found


class Pool:
    """A work pool of the test's own with one deployment."""

    def __init__(self, client: SyncPrefectClient, name: str) -> None:
        self.client, self.name = client, name
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        flow_id = client.create_flow_from_name(f"flow-of-{name}")
        self.deployment = client.create_deployment(
            flow_id, name="d", work_pool_name=name, enforce_parameter_schema=False
        )

    def ended(self, state: Any) -> FlowRun:
        run = self.client.create_flow_run_from_deployment(self.deployment, parameters={"a": 1})
        self.client.set_flow_run_state(run.id, Running(), force=True)
        self.client.set_flow_run_state(run.id, state, force=True)
        return self.client.read_flow_run(run.id)

    def rerun(self, ending: Callable[[], Any] = Completed, **config: Any) -> list[str]:
        """Do `rerun` while a worker ends every scheduled run with `ending()`; the ids of the runs in their order."""
        ran: list[str] = []
        over = threading.Event()

        def work() -> None:
            with get_client(sync_client=True) as client:
                while not over.wait(0.05):
                    waiting = client.request(
                        "POST", "/flow_runs/filter", json={"work_pools": {"name": {"any_": [self.name]}}}
                    )
                    for run in waiting.json():
                        if run["state"]["name"] == "AwaitingRetry":
                            ran.append(run["id"])
                            client.set_flow_run_state(run["id"], Running(), force=True)
                            client.set_flow_run_state(run["id"], ending(), force=True)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            rerun(RerunConfig(work_pools=(self.name,), **config))
        finally:
            over.set()
            worker.join()
        return ran

    def read(self, run: FlowRun) -> FlowRun:
        return self.client.read_flow_run(run.id)

    def report(self) -> str:
        answer = self.client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["rerun"]}}})
        return str(max(answer.json(), key=lambda each: each["created"])["data"]).replace("\\", "")


@pytest.fixture
def pool(client: SyncPrefectClient, request: pytest.FixtureRequest) -> Pool:
    return Pool(client, request.node.name.replace("_", "-")[:60])


def test_transient_failures_are_rerun_oldest_first_with_the_same_parameters(pool):
    first, bad = pool.ended(Failed(message=TRANSIENT)), pool.ended(Failed(message=FAILED + "ValueError: wrong | way"))
    second, done = pool.ended(Crashed(message="gone")), pool.ended(Completed())
    assert pool.rerun() == [str(first.id), str(second.id)]
    for run in (first, second):
        found = pool.read(run)
        assert (found.state_name, found.labels[LABEL], found.parameters) == ("Completed", 1, {"a": 1})
    assert pool.read(bad).state == bad.state
    assert pool.read(done).state == done.state
    assert LABEL not in pool.read(bad).labels
    assert f"| {bad.name} | Failed: {FAILED}ValueError: wrong | way | 0 | not rerun: ValueError is not" in pool.report()
    assert f"| {first.name} | Failed: {TRANSIENT} | 0 | rerun: Completed |" in pool.report()


def test_a_run_that_fails_during_a_rerun_is_rerun_too_and_the_final_state_has_both(pool):
    first, late = pool.ended(Failed(message=TRANSIENT)), list[FlowRun]()

    def ending() -> Any:
        if not late:
            late.append(pool.ended(Crashed(message="gone")))
        return (
            Failed(message=TRANSIENT)
            if len(late) == 1 and pool.read(late[0]).labels.get(LABEL) is None
            else Completed()
        )

    assert pool.rerun(ending) == [str(first.id), str(late[0].id)]
    assert pool.read(late[0]).state_name == "Completed"
    answer = pool.client.request("POST", "/flow_runs/filter", json={"flows": {"name": {"any_": ["rerun"]}}})
    state = max(answer.json(), key=lambda each: each["created"])["state"]
    assert state["type"] == "COMPLETED"
    assert state["message"] == f"{first.name}: rerun: Failed: {TRANSIENT}; {late[0].name}: rerun: Completed"


def test_the_number_of_reruns_is_bounded_over_all_runs_of_the_flow(pool):
    run = pool.ended(Failed(message=TRANSIENT))
    again = lambda: Failed(message=TRANSIENT)  # noqa: E731
    assert [len(pool.rerun(again)) for _ in range(4)] == [1, 1, 0, 0]
    assert pool.read(run).labels[LABEL] == 2
    assert "not rerun: already rerun 2 times" in pool.report()
    assert len(pool.rerun(again, max_reruns=3)) == 1


def test_runs_of_other_pools_and_old_runs_are_not_rerun(pool, client):
    other = Pool(client, pool.name + "-2")
    run = other.ended(Failed(message=TRANSIENT))
    old = pool.ended(Failed(message=TRANSIENT))
    time.sleep(1)
    assert pool.rerun(hours=0.5 / 3600) == []
    assert other.read(run).state == run.state
    assert pool.read(old).state == old.state
    assert pool.report() == "No run failed or crashed."


def test_a_crashed_run_whose_process_is_alive_is_not_rerun(pool, client, monkeypatch):
    run = pool.ended(Crashed(message="its process vanished"))
    event = "prefect.flow-run.heartbeat"
    emit_event(event, resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"})
    end = time.monotonic() + 20
    while not flows.rerun._beats(client, run):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert pool.rerun() == []
    assert "marked as crashed, but its process is alive" in pool.report()
    monkeypatch.setattr(flows.rerun, "VANISHED_S", 0.5)
    time.sleep(1)
    assert pool.rerun() == [str(run.id)]  # its last heartbeat is too old now


def test_a_run_whose_worker_vanished_before_it_began_is_rerun(pool):
    run = pool.client.create_flow_run_from_deployment(pool.deployment, parameters={"a": 1})
    pool.client.set_flow_run_state(run.id, Pending(), force=True)
    assert pool.rerun() == []  # it may still begin
    assert pool.read(run).state_name == "Pending"
    rerun(RerunConfig(work_pools=(pool.name,), pending_minutes=1e-6, dry_run=True))
    assert pool.read(run).state_name == "Pending"
    assert pool.rerun(pending_minutes=1e-6) == [str(run.id)]
    assert (pool.read(run).state_name, pool.read(run).labels[LABEL]) == ("Completed", 1)
    assert "Crashed: its worker vanished before it began" in pool.report()


def test_a_rerun_whose_worker_vanishes_before_it_begins_is_not_waited_for(pool):
    run = pool.ended(Failed(message=TRANSIENT))
    assert pool.rerun(Pending, pending_minutes=0.5 / 60) == [str(run.id)]
    assert pool.read(run).state_name == "Crashed"
    assert "rerun: Crashed: its worker vanished before it began" in pool.report()


def test_the_wait_for_a_run_is_bounded(pool, monkeypatch):
    run = pool.ended(Failed(message=TRANSIENT))
    rerun(RerunConfig(work_pools=(pool.name,), wait_hours=0.2 / 3600))  # no worker
    assert pool.read(run).state_name == "AwaitingRetry"
    assert "rerun: has not ended after" in pool.report()


def test_a_dry_run_changes_nothing(pool, capsys):
    run = pool.ended(Failed(message=TRANSIENT))
    rerun(RerunConfig(work_pools=(pool.name,), dry_run=True))
    assert "would be rerun" in capsys.readouterr().out
    assert pool.read(run).state == run.state


def test_a_run_whose_state_changed_meanwhile_is_not_rerun(pool, client):
    run = pool.ended(Failed(message=TRANSIENT))
    client.set_flow_run_state(run.id, Running(), force=True)
    assert flows.rerun.rerun_once(client, run, RerunConfig()) == "not rerun: its state changed meanwhile"


def test_the_report_is_published_even_if_the_api_goes_away(pool, monkeypatch):
    pool.ended(Failed(message=FAILED + "ValueError: first"))
    pool.ended(Failed(message=TRANSIENT))

    def gone(*_: Any, **__: Any) -> str:
        raise httpx.ConnectError("gone")

    monkeypatch.setattr(flows.rerun, "rerun_once", gone)
    with pytest.raises(httpx.ConnectError):
        rerun(RerunConfig(work_pools=(pool.name,)))
    assert "ValueError: first" in pool.report()
