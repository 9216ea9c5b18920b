"""What the Prefect server itself does about our runs: one whose process or worker is gone is marked as crashed.

It gives up its place in its work pool then, and `rerun/scheduled` finds it.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

VANISHED_S = 120  # a run without a heartbeat (they come every 30 s) for so long has lost its process
PENDING_S = 900  # a run that a worker took so long ago and never started has lost its worker
DEFINITION = {"description", "trigger", "actions"}  # of an automation; whether it is enabled is yours to say

BEAT, PENDING = "prefect.flow-run.heartbeat", "prefect.flow-run.Pending"
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Paused")}
OURS = ResourceSpecification({"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.bolt"})


def _crashed(name: str, after: str, expect: set[str], seconds: float, message: str) -> AutomationCore:
    """A run of ours that is not followed by one of the events `expect` within `seconds` is marked as crashed."""
    return AutomationCore(
        name=name,
        description=f"A run is marked as crashed, so that rerun/scheduled finds it: {message}.",
        trigger=EventTrigger(
            after={after},
            expect=expect,
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def automations() -> list[AutomationCore]:
    """Both of them."""
    beats = f"its process vanished: no heartbeat for {VANISHED_S:g} s"
    began = f"its worker vanished before it began: pending for {PENDING_S:g} s"
    started = {"prefect.flow-run.Running", BEAT, *ENDED}
    return [
        _crashed("bolt: a run's process vanished", BEAT, {BEAT, *ENDED}, VANISHED_S, beats),
        _crashed("bolt: a run never began", PENDING, started, PENDING_S, began),
    ]


def make_automations(url: str) -> None:
    """Make what is missing, and make what is there what it should be."""
    with SyncPrefectClient(url) as client:
        for each in automations():
            there = client.read_automations_by_name(each.name)
            if not there:
                client.create_automation(each)
            # Only where it differs: with each update Prefect forgets which events it waits for.
            elif there[0].model_dump(include=DEFINITION) != each.model_dump(include=DEFINITION):
                client.update_automation(there[0].id, each)
