"""The automations against a real Prefect server, with short times."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import Event
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending, Running

from infra.operations import automations


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as shorter:
        shorter.setattr(automations, "PENDING_S", 10)  # Prefect's minimum
        shorter.setattr(automations, "VANISHED_S", 10)
        with prefect_test_harness(server_startup_timeout=300), get_client(sync_client=True) as found:
            automations.make_automations(str(PREFECT_API_URL.value()))
            yield found


def test_only_runs_that_never_began_or_lost_their_heartbeat_are_marked_as_crashed(client):
    flow = client.create_flow_from_name("bolt")

    def run(tag: str, *states: object) -> FlowRun:
        made = client.request("POST", "/flow_runs/", json={"flow_id": str(flow), "tags": [tag]}).json()
        for state in states:
            client.set_flow_run_state(made["id"], state, force=True)
        return client.read_flow_run(made["id"])

    def crashed(runs: list[FlowRun]) -> list[str]:
        states = [client.read_flow_run(each.id).state for each in runs]
        return [state.message for state in states if state.type == StateType.CRASHED]

    other, begun = run("theirs", Pending()), run("bolt", Pending(), Running())
    tag = {"prefect.resource.id": "prefect.tag.bolt", "prefect.resource.role": "tag"}
    lost: list[FlowRun] = []
    silent: list[FlowRun] = []
    for _ in range(12):  # the automations do not see events from before the server has loaded them
        lost.append(run("bolt", Pending()))
        silent.append(run("bolt", Pending(), Running()))
        who = {"prefect.resource.id": f"prefect.flow-run.{silent[-1].id}"}
        beat = Event(event="prefect.flow-run.heartbeat", resource=who, related=[tag])
        client.request(
            "POST", "/events", json=[beat.model_dump(mode="json")]
        )  # a process's emitter is bound to one server
        end = time.monotonic() + 15
        while not (crashed(lost) and crashed(silent)) and time.monotonic() < end:
            time.sleep(0.5)
        if crashed(lost) and crashed(silent):
            break
    assert "its worker vanished before it began" in crashed(lost)[0]
    assert "no heartbeat" in crashed(silent)[0]
    assert [client.read_flow_run(each.id).state.name for each in (other, begun)] == ["Pending", "Running"]


def test_only_a_changed_automation_is_updated(client, monkeypatch):
    url = str(PREFECT_API_URL.value())
    names = [each.name for each in automations.automations()]
    before = [client.read_automations_by_name(name) for name in names]
    assert [len(each) for each in before] == [1, 1]
    automations.make_automations(url)
    assert [client.read_automations_by_name(name) for name in names] == before
    monkeypatch.setattr(automations, "PENDING_S", 15)
    automations.make_automations(url)
    assert client.read_automations_by_name(names[1])[0].trigger.within.total_seconds() == 15
