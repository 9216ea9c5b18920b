"""Rerun what failed or crashed: the same flow run, with the same parameters, so that what is done is found Cached.

Its deployment has a work pool of its own: it waits for runs of the pool `bolt`, where one runs at a time, and would
hold the place that they need. How often a run was rerun is a label of that run in Prefect (`bolt.reruns`).
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
from pydantic import BaseModel, ConfigDict, Field

from flows.stages.run import ALERTS, TASK_RUNNER
from infra.operations.automations import VANISHED_S
from infra.processes.torchrun import TrainerError
from infra.serving.completions import CompletionError
from infra.serving.vllm_server import ServerError
from infra.steps.keys import CodeChangedError
from infra.steps.step import OUTAGES
from infra.store.errors import TRANSIENT, StoreError
from infra.store.manifest import BadArtifact
from infra.text.markdown import plain, short

LABEL = "bolt.reruns"
POLL_S = 5.0
PAGE = 200  # flow runs asked for at once: Prefect's own limit

NO_MEMORY = re.compile(  # Python's, torch's, the kernel's, Prefect's and vLLM's words
    r"(?<!may cause )out.of.memory|OutOfMemoryError|MemoryError|cannot allocate memory|no available memory"
    r"|high memory usage|(?:larger than the available KV cache|(?:less than|exceed the) desired GPU) memory",
    re.IGNORECASE,
)
MISTAKE = re.compile(  # in the last words of a server or a trainer: it would say the same again
    r"unrecognized arguments|error: argument |^(?:\[rank\d+\]: |\S+ )*(?:[\w.]+\.)?"
    r"(?:ValueError|TypeError|KeyError|AttributeError|ImportError|ModuleNotFoundError|ValidationError): ",
    re.MULTILINE,
)
FAILED_WITH = re.compile(r"exception: (\w+)")  # Prefect's message: "Flow run encountered an exception: TYPE: TEXT"


class RerunConfig(BaseModel):
    """Parameters of the flow `rerun`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hours: float = Field(24, gt=0, description="How far to look back: runs that ended earlier are left alone.")
    work_pool: str = Field("bolt", description="Work pool whose runs are looked after.")
    pending_minutes: float = Field(
        15,
        gt=0,
        description="A run that is Pending for longer has lost its worker before it began, and counts as crashed. "
        "More where starting takes longer, e.g. for the pull of an image.",
    )
    max_reruns: int = Field(2, ge=1, description="Most reruns of one flow run, over all runs of `rerun`.")
    wait_hours: float = Field(24, gt=0, description="Longest wait for the end of one rerun, in hours.")
    dry_run: bool = Field(False, description="Print what would be rerun and what not, and stop.")


class Outcome(NamedTuple):
    """What was done about one flow run; all text."""

    run: str
    ended: str
    reruns: str
    done: str


def _names(*kinds: type[BaseException]) -> set[str]:
    """The names of these exceptions and of all that derive from them."""
    return {name for kind in kinds for name in {kind.__name__, *_names(*kind.__subclasses__())}}


HEALING = _names(ServerError, TrainerError, CompletionError, BadArtifact, CodeChangedError, *OUTAGES)
HEALING -= {CompletionError.__name__}
"""Errors that another run may not meet. A plain `CompletionError` is a refusal; those derived from it are outages."""


LAST_WORDS = _names(ServerError, TrainerError)
"""Errors whose text ends with a log's last lines."""


def cannot_heal(state: StateType, message: str) -> str | None:
    """Why the same run would end the same way again; None where it may not.

    A crash (a process or its machine went away) may always heal, and of errors those of servers, trainers and networks,
    all but a lack of memory. What is not known to heal is left to a human.
    """
    if NO_MEMORY.search(message):
        return "out of memory: give it less to do at once, or more memory"
    if state == StateType.CRASHED:
        return None
    found = FAILED_WITH.search(message)
    error = found[1] if found else "unknown"
    if error == StoreError.__name__:
        return None if any(what in message for what in TRANSIENT) else "the store's error needs a human"
    if error in LAST_WORDS and MISTAKE.search(message):
        return f"a mistake that does not heal by itself ({error})"
    if error in HEALING or "Server error '5" in message:
        return None
    return f"an error ({error}) that does not heal by itself"


def ended_badly(client: SyncPrefectClient, config: RerunConfig) -> Iterator[FlowRun]:
    """The work pool's failed and crashed runs of the last `hours`, each once, oldest first.

    They are listed again after each: while one is rerun, others may end.
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
    """Whether a worker took a run `pending_minutes` ago and never started it.

    Such a run sends no heartbeat, and it keeps its place in the pool.
    """
    latest = datetime.now(UTC) - timedelta(minutes=config.pending_minutes)
    return run.state is not None and run.state.type == StateType.PENDING and run.state.timestamp < latest


def crash(client: SyncPrefectClient, run: FlowRun, config: RerunConfig) -> None:
    """Take a run that never began for crashed."""
    message = f"its worker vanished before it began: pending for {config.pending_minutes:g} minutes"
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def _runs(
    client: SyncPrefectClient, config: RerunConfig, states: list[StateType], ended: FlowRunFilterEndTime | None = None
) -> Iterator[FlowRun]:
    """The work pool's runs in one of these states, oldest first."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=states))
    offset = 0
    while True:
        page = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=state, end_time=ended),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[config.work_pool])),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=PAGE,
            offset=offset,
        )
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE


def reruns_of(run: FlowRun) -> int:
    """How often a flow run was rerun, by its label."""
    return int(run.labels.get(LABEL, 0))


def left_alone(client: SyncPrefectClient, run: FlowRun, config: RerunConfig) -> str | None:
    """Why a run is not rerun; None where it is."""
    assert run.state is not None
    if reruns_of(run) >= config.max_reruns:
        return f"it was rerun {reruns_of(run)} times"
    if why := cannot_heal(run.state.type, run.state.message or ""):
        return why
    if run.state.type == StateType.CRASHED and _beats(client, run):
        return "it was thought dead, but its process lives"
    return None


def _beats(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a crashed run has sent a heartbeat since, and lately: it was out of reach for a while, no more."""
    assert run.state is not None
    lately = datetime.now(UTC) - timedelta(seconds=VANISHED_S)
    events = client.read_events(
        EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
            occurred=EventOccurredFilter(since=max(run.state.timestamp, lately)),
        ),
        limit=1,
    )
    return bool(events.events)


def rerun_once(client: SyncPrefectClient, run: FlowRun, config: RerunConfig) -> str:
    """Schedule the run again and wait for its end, at most `wait_hours`; says how that went."""
    assert run.state is not None
    now = client.read_flow_run(run.id)
    if now.state is None or now.state.id != run.state.id:
        return "left alone: its state changed meanwhile"
    client.update_flow_run_labels(run.id, {LABEL: reruns_of(now) + 1})  # first: a lost answer must not make it endless
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
            return f"rerun: not ended after {config.wait_hours:g} hours"
        time.sleep(POLL_S)


def ending(run: FlowRun) -> str:
    """A run's state and what it says."""
    assert run.state is not None
    return f"{run.state.name}: {run.state.message}" if run.state.message else str(run.state.name)


def report(outcomes: list[Outcome]) -> str:
    """What was done, as a Markdown table."""
    if not outcomes:
        return "No run failed or crashed."
    lines = ["| run | ended | reruns before | what was done |", "|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(plain(cell) for cell in outcome) + " |" for outcome in outcomes])


@flow(task_runner=TASK_RUNNER, **ALERTS)
def rerun(config: RerunConfig) -> State[None]:
    """Rerun the failed and crashed runs of a work pool that may heal: each once, oldest first, one at a time.

    What was done is the message of its last state: the alert on its end tells it, also of runs that could not tell
    their own end.
    """
    log, outcomes = get_run_logger(), list[Outcome]()
    with get_client(sync_client=True) as client:
        pending = list(_runs(client, config, [StateType.PENDING]))
        try:
            for run in (each for each in pending if never_began(each, config)):
                if config.dry_run:
                    outcomes.append(Outcome(run.name, ending(run), str(reruns_of(run)), "would be taken for crashed"))
                else:
                    crash(client, run, config)
            for run in ended_badly(client, config):
                why = left_alone(client, run, config)
                if why:
                    done = f"left alone: {why}"
                else:
                    done = "would be rerun" if config.dry_run else rerun_once(client, run, config)
                outcomes.append(Outcome(run.name, ending(run), str(reruns_of(run)), done))
                log.info("%s: %s", run.name, done)
        finally:
            print(report(outcomes))
            if not config.dry_run:
                create_markdown_artifact(report(outcomes), key="rerun", description="What was rerun, and what not")
    return Completed(message="; ".join(f"{each.run}: {short(each.done)}" for each in outcomes) or None)
