"""The automations against a real Prefect server, with short times."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending, Running

from infra import automations


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as shorter:
        shorter.setattr(automations, "PENDING_S", 10)  # Prefect takes no less
        shorter.setattr(automations, "VANISHED_S", 10)
        with prefect_test_harness(server_startup_timeout=60), get_client(sync_client=True) as found:
            automations.make_automations(str(PREFECT_API_URL.value()))
            yield found


def test_a_run_that_never_began_or_beats_no_more_is_marked_as_crashed_and_no_other(client):
    flow = client.create_flow_from_name("bolt")

    def run(tag: str, *states: object) -> FlowRun:
        made = client.request("POST", "/flow_runs/", json={"flow_id": str(flow), "tags": [tag]}).json()
        for state in states:
            client.set_flow_run_state(made["id"], state, force=True)
        return client.read_flow_run(made["id"])

    lost, other = run("bolt", Pending()), run("theirs", Pending())
    begun, silent = run("bolt", Pending(), Running()), run("bolt", Pending(), Running())
    tag = {"prefect.resource.id": "prefect.tag.bolt", "prefect.resource.role": "tag"}
    emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{silent.id}"}, related=[tag])
    end = time.monotonic() + 60
    while {client.read_flow_run(each.id).state.type for each in (lost, silent)} != {StateType.CRASHED}:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert "its worker vanished before it began" in client.read_flow_run(lost.id).state.message
    assert "no heartbeat" in client.read_flow_run(silent.id).state.message
    assert [client.read_flow_run(each.id).state.name for each in (other, begun)] == ["Pending", "Running"]


def test_made_again_they_are_left_as_they_are_and_a_changed_one_is_updated(client, monkeypatch):
    url = str(PREFECT_API_URL.value())
    names = [each.name for each in automations.automations()]
    before = [client.read_automations_by_name(name) for name in names]
    assert [len(each) for each in before] == [1, 1]
    automations.make_automations(url)
    assert [client.read_automations_by_name(name) for name in names] == before
    monkeypatch.setattr(automations, "PENDING_S", 15)
    automations.make_automations(url)
    assert client.read_automations_by_name(names[1])[0].trigger.within.total_seconds() == 15
