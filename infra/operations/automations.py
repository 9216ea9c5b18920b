"""Automations of the Prefect server: a run whose process or worker has vanished is marked as crashed.

This frees its place in the work pool, and `rerun/scheduled` finds it. `make up` makes them, and
`python -m infra.operations.automations` on the server that PREFECT_API_URL names.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

VANISHED_S = 120  # a run without a heartbeat for this long (normally one every 30 s) has lost its process
PENDING_S = 900  # a run that a worker took this long ago and has not started has lost its worker
DEFINITION = {"description", "trigger", "actions"}  # fields that we set; the user may disable an automation

BEAT, PENDING = "prefect.flow-run.heartbeat", "prefect.flow-run.Pending"
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Paused")}
OURS = ResourceSpecification({"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.bolt"})


def _crashed(name: str, after: str, expect: set[str], seconds: float, message: str) -> AutomationCore:
    """Marks a run of ours as crashed if none of the events `expect` follows the event `after` within `seconds`."""
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
    """The automations: one for runs whose process vanished, one for runs that their worker never started."""
    vanished = f"its process vanished: no heartbeat for {VANISHED_S:g} s"
    pending = f"its worker vanished before it began: pending for {PENDING_S:g} s"
    started = {"prefect.flow-run.Running", BEAT, *ENDED}
    return [
        _crashed("bolt: a run's process vanished", BEAT, {BEAT, *ENDED}, VANISHED_S, vanished),
        _crashed("bolt: a run never began", PENDING, started, PENDING_S, pending),
    ]


def make_automations(url: str) -> None:
    """Create the automations that do not exist, and update those whose definition differs."""
    with SyncPrefectClient(url) as client:
        for each in automations():
            existing = client.read_automations_by_name(each.name)
            if not existing:
                client.create_automation(each)
            # Only if it differs: on each update, Prefect forgets which events it is waiting for.
            elif existing[0].model_dump(include=DEFINITION) != each.model_dump(include=DEFINITION):
                client.update_automation(existing[0].id, each)


if __name__ == "__main__":
    if not (address := os.environ.get("PREFECT_API_URL")):
        sys.exit("PREFECT_API_URL is not set: export the address of the Prefect server, e.g. http://HOST:4200/api")
    make_automations(address)
