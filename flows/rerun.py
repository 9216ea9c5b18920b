"""`python -m flows rerun/scheduled`: rerun the flow runs that failed or crashed, if they may succeed on retry.

A rerun is the same flow run with the same parameters, so that its finished steps are Cached. The number of reruns of a
run is a label of that run in Prefect (`bolt.reruns`). The deployment of this flow has a work pool of its own, since it
waits for runs of `bolt-gpu` and `bolt-cpu`, where one runs at a time: there it would occupy the slot that they need.

Prefect alone cannot do this: an automation can reschedule a run, but it cannot count reruns, nor read the error, nor
start the runs one after another. `prefect flow-run retry` is the one call that `rerun_once` makes itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.states import AwaitingRetry, Completed, Crashed
from pydantic import BaseModel, Field

from flows.stages.common import ALERTS
from flows.stages.run import TASK_RUNNER
from infra.operations.automations import VANISHED_S
from infra.processes.torchrun import TrainerError
from infra.serving.completions import CompletionError, DeniedError, RefusedError
from infra.serving.vllm_server import ServerError
from infra.steps.keys import CodeChangedError
from infra.steps.step import OUTAGES
from infra.store.errors import TRANSIENT, StoreError
from infra.store.manifest import BadArtifact
from infra.text.markdown import markdown_table, plain, short

LABEL = "bolt.reruns"
POLL_S = 5.0
PAGE = 200  # flow runs per request: Prefect's own limit

NO_MEMORY = re.compile(  # the words of Python, torch, the kernel, Prefect and vLLM
    r"(?<!may cause )out.of.memory|OutOfMemoryError|MemoryError|cannot allocate memory|no available memory"
    r"|high memory usage|(?:larger than the available KV cache|(?:less than|exceed the) desired GPU) memory",
    re.IGNORECASE,
)
MISTAKE = re.compile(  # in the last log lines of a server or a trainer: it would fail the same way again
    r"unrecognized arguments|error: argument |^(?:\[rank\d+\]: |\S+ )*(?:[\w.]+\.)?"
    r"(?:GuardError|ValueError|BadInput|ModelError|TypeError|KeyError|AttributeError|ImportError"
    r"|ModuleNotFoundError|ValidationError): ",
    re.MULTILINE,
)
FAILED_WITH = re.compile(r"exception: (\w+)")  # Prefect's message: "Flow run encountered an exception: TYPE: TEXT"


class RerunConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Parameters of the flow `rerun`."""

    hours: float = Field(
        24, gt=0, le=100_000, description="How far to look back, in hours. Runs that ended earlier are not rerun."
    )
    work_pools: tuple[str, ...] = Field(
        ("bolt-gpu", "bolt-cpu"), min_length=1, description="Work pools whose runs are rerun."
    )
    pending_minutes: float = Field(
        15,
        gt=0,
        le=100_000,
        description="A run that is Pending for longer than this many minutes lost its worker before it began, and is "
        "marked as crashed. Set more if starting takes longer, e.g. to pull an image.",
    )
    max_reruns: int = Field(2, ge=1, description="Maximum number of reruns of one flow run, over all runs of `rerun`.")
    wait_hours: float = Field(24, gt=0, le=100_000, description="Maximum wait for the end of one rerun, in hours.")
    dry_run: bool = Field(False, description="Print which runs would be rerun and which not, and stop.")


class Outcome(NamedTuple):
    """One row of the report: a flow run, how it ended, and what was done."""

    run: str
    ended: str
    reruns: str
    done: str


def _names(*kinds: type[BaseException]) -> set[str]:
    """The names of these exceptions and of all their subclasses."""
    return {name for kind in kinds for name in {kind.__name__, *_names(*kind.__subclasses__())}}


RETRIABLE = _names(ServerError, TrainerError, CompletionError, BadArtifact, CodeChangedError, *OUTAGES)
RETRIABLE -= {each.__name__ for each in (CompletionError, RefusedError, DeniedError)}
"""Errors that may be transient. Of the kinds of `CompletionError`, those are outages that are not taken out here."""


WITH_LOG_LINES = _names(ServerError, TrainerError)
"""Errors whose text ends with the last lines of a log."""


def why_permanent(state: StateType, message: str) -> str | None:
    """Why a rerun would end the same way; None if it may succeed.

    A crash (a process or its machine went away) may always succeed on retry. So may errors of servers, trainers and
    networks. Out of memory is permanent, and so is any error that is not known to be transient.
    """
    if NO_MEMORY.search(message):
        return "out of memory: reduce the load, or provide more memory"
    if state == StateType.CRASHED:
        return None
    found = FAILED_WITH.search(message)
    error = found[1] if found else "an unnamed error"
    if error == StoreError.__name__:
        return None if any(what in message for what in TRANSIENT) else "the store's error has to be fixed by a person"
    if error in WITH_LOG_LINES and MISTAKE.search(message):
        return f"{error} caused by a mistake in settings or code"
    if error in RETRIABLE or "Server error '5" in message:
        return None
    return f"{error} is not known to be transient"


def failed_runs(client: SyncPrefectClient, config: RerunConfig) -> Iterator[FlowRun]:
    """The work pool's failed and crashed runs of the last `hours`, each once, oldest first.

    The list is read again after each run, since others may fail while one is rerun.
    """
    ended = FlowRunFilterEndTime(after_=datetime.now(UTC) - timedelta(hours=config.hours))
    seen = set[UUID]()
    while True:
        found = _runs(client, config, [StateType.FAILED, StateType.CRASHED], ended)
        run = next((each for each in found if each.id not in seen), None)
        if run is None:
            return
        seen.add(run.id)
        yield run


def never_began(run: FlowRun, config: RerunConfig) -> bool:
    """Whether a worker took a run more than `pending_minutes` ago and never started it.

    Such a run sends no heartbeat, and it keeps its slot in the pool.
    """
    latest = datetime.now(UTC) - timedelta(minutes=config.pending_minutes)
    return run.state is not None and run.state.type == StateType.PENDING and run.state.timestamp < latest


def crash(client: SyncPrefectClient, run: FlowRun, config: RerunConfig) -> None:
    """Mark a run that never began as crashed."""
    message = f"its worker vanished before it began: pending for {config.pending_minutes:g} minutes"
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def _runs(
    client: SyncPrefectClient, config: RerunConfig, states: list[StateType], ended: FlowRunFilterEndTime | None = None
) -> Iterator[FlowRun]:
    """The work pools' runs in one of these states, oldest first."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=states))
    offset = 0
    while True:
        page = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=state, end_time=ended),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=list(config.work_pools))),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=PAGE,
            offset=offset,
        )
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE


def reruns_of(run: FlowRun) -> int:
    """How often a flow run was rerun, according to its label."""
    return int(run.labels.get(LABEL, 0))


def why_not(client: SyncPrefectClient, run: FlowRun, config: RerunConfig) -> str | None:
    """Why a run is not rerun; None if it is to be rerun."""
    assert run.state is not None
    if reruns_of(run) >= config.max_reruns:
        return f"already rerun {reruns_of(run)} times"
    if why := why_permanent(run.state.type, run.state.message or ""):
        return why
    if run.state.type == StateType.CRASHED and _beats(client, run):
        return "marked as crashed, but its process is alive"
    return None


def _beats(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a crashed run has sent a recent heartbeat: it was only out of reach for a while."""
    assert run.state is not None
    recent = datetime.now(UTC) - timedelta(seconds=VANISHED_S)
    events = client.read_events(
        EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
            occurred=EventOccurredFilter(since=max(run.state.timestamp, recent)),
        ),
        limit=1,
    )
    return bool(events.events)


def rerun_once(client: SyncPrefectClient, run: FlowRun, config: RerunConfig) -> str:
    """Schedule the run again and wait up to `wait_hours` for its end. Returns the outcome as text."""
    assert run.state is not None
    now = client.read_flow_run(run.id)
    if now.state is None or now.state.id != run.state.id:
        return "not rerun: its state changed meanwhile"
    client.update_flow_run_labels(
        run.id, {LABEL: reruns_of(now) + 1}
    )  # first: if the next answer is lost, the rerun still counts
    answer: OrchestrationResult[Any] = client.set_flow_run_state(
        run.id, AwaitingRetry(message="rerun/scheduled: try again")
    )
    if answer.status != SetStateStatus.ACCEPT:
        return f"Prefect refused to schedule it: {getattr(answer.details, 'reason', None)}"
    end = time.monotonic() + config.wait_hours * 3600
    while True:
        now = client.read_flow_run(run.id)
        if now.state is not None and now.state.is_final():
            return f"rerun: {ending(now)}"
        if never_began(now, config):
            crash(client, now, config)
            continue
        if time.monotonic() > end:
            return f"rerun: has not ended after {config.wait_hours:g} hours"
        time.sleep(POLL_S)


def ending(run: FlowRun) -> str:
    """A run's state and its message."""
    assert run.state is not None
    return f"{run.state.name}: {run.state.message}" if run.state.message else str(run.state.name)


def report(outcomes: list[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    if not outcomes:
        return "No run failed or crashed."
    titles = ("run", "ended", "reruns before", "what was done")
    return markdown_table([dict(zip(titles, map(plain, outcome), strict=True)) for outcome in outcomes])


@flow(task_runner=TASK_RUNNER, **ALERTS)
def rerun(config: RerunConfig) -> State[None]:
    """Rerun failed and crashed runs that may succeed on retry, oldest first, one at a time.

    The outcomes are the message of this run's final state, so that its alert reports them: a run whose process died
    could not send an alert itself.
    """
    log, outcomes = get_run_logger(), list[Outcome]()
    with get_client(sync_client=True) as client:
        pending = list(_runs(client, config, [StateType.PENDING]))
        try:
            for run in (each for each in pending if never_began(each, config)):
                if config.dry_run:
                    outcomes.append(Outcome(run.name, ending(run), str(reruns_of(run)), "would be marked as crashed"))
                else:
                    crash(client, run, config)
            for run in failed_runs(client, config):
                why = why_not(client, run, config)
                if why:
                    done = f"not rerun: {why}"
                else:
                    done = "would be rerun" if config.dry_run else rerun_once(client, run, config)
                outcomes.append(Outcome(run.name, ending(run), str(reruns_of(run)), done))
                log.info("%s: %s", run.name, done)
        finally:
            print(report(outcomes))
            if not config.dry_run:
                create_markdown_artifact(
                    report(outcomes), key="rerun", description="Which runs were rerun, and why others were not"
                )
    return Completed(message="; ".join(f"{each.run}: {short(each.done)}" for each in outcomes) or None)
