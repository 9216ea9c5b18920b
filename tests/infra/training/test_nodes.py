"""Two machines that train together: the agent, the launcher, what they refuse, and what a lost one leaves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.errors import BadInput
from infra.processes.torchrun import TrainerError
from infra.settings import PACKAGES
from infra.training import node, nodes
from infra.training.hosts import Hosts
from infra.training.node import Agent
from infra.training.nodes import Team, check_hosts
from infra.training.signs import (
    Offer,
    Pulse,
    Sign,
    Who,
    beat,
    difference,
    facts_here,
    node_log,
    offer_path,
    read,
    sign_path,
    write,
)
from infra.training.slot import Slot

LOOPBACK = ("127.0.0.1", "127.0.0.2")


# ---- the configuration


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (("gpu-0", "gpu-1:29500"), "'gpu-1:29500' is no host"),
        (("gpu-0", "user@gpu-1"), "no host"),
        (("gpu-0", ""), "'' is no host"),
        (("gpu-0", "gpu-1", "gpu-0"), "each machine once; gpu-0"),
        (("localhost", "gpu-1"), "on every other machine means that machine itself"),
        (("127.0.0.1", "10.0.0.2"), "on every other machine means that machine itself"),
    ],
)
def test_hosts_that_cannot_be_meant(hosts: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Hosts(hosts=hosts)


def test_names_and_addresses_of_any_kind_are_hosts() -> None:
    given = ("bolt-flow", "bolt-node-1.bolt-node.default.svc", "10.0.0.3", "fe80::1", "NODE_7")
    assert Hosts(hosts=given).nodes == 5
    assert Hosts().nodes == Hosts(hosts=("gpu-0",)).nodes == 1


def test_the_first_host_is_the_flows_machine(tmp_path: Path) -> None:
    Hosts(hosts=(socket.gethostname(), "gpu-1")).check_first()
    with pytest.raises(BadInput, match=rf"the first is 192.0.2.1 .* the flow runs on {socket.gethostname()}"):
        check_hosts(Hosts(hosts=("192.0.2.1", "gpu-1")), tmp_path)
    with pytest.raises(BadInput, match=r"'gpu-0.invalid', has no address here"):
        check_hosts(Hosts(hosts=("gpu-0.invalid", "gpu-1")), tmp_path)


# ---- signs of life and facts


def test_a_beat_tells_a_living_writer_from_one_that_left_its_file(tmp_path: Path) -> None:
    now, path = [100.0], tmp_path / "node-1.json"
    beat(path, 1)
    pulse = Pulse(path, clock=lambda: now[0])
    assert not pulse.beats(1e9)  # it may have been dead for years
    beat(path, 2)
    assert pulse.beats(10)
    now[0] += 9
    assert pulse.beats(10)
    now[0] += 2
    assert not pulse.beats(10)
    path.with_suffix(".beat").unlink()  # a folder that is away says nothing new
    assert not pulse.beats(10)
    beat(path, 3)
    assert pulse.beats(10)


@pytest.mark.parametrize("package", PACKAGES)
def test_other_code_and_other_libraries_are_named(tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "a.py").write_text("x = 1\n")
    ours = facts_here(tmp_path)
    assert difference(facts_here(tmp_path), ours) == ""
    (tmp_path / package / "a.py").write_text("x = 2\n")
    assert f"the project's code ({package})" in difference(facts_here(tmp_path), ours)
    said = difference({**ours, "Python": "3.9.1", "torch": "1.0", "trl": "none"}, ours)
    assert "Python: 3.9.1 and not 3." in said
    assert f"torch: 1.0 and not {ours['torch']}" in said
    assert "trl: none and not" in said


# ---- the agent, step by step


class Ranks:
    """Stands for a torchrun."""

    status: int | None = None

    def poll(self) -> int | None:
        return self.status

    def stop(self) -> None:
        self.status = -9 if self.status is None else self.status


class FakeFlow:
    """Writes what a flow writes into the shared folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        (folder / "train.config.json").write_text("{}")
        self.new()

    def new(self, **changes: Any) -> None:
        log = self.folder / "train.log"
        plain = {
            "by": Who.me(),
            "hosts": LOOPBACK,
            "lost_after_s": 3.0,
            "facts": facts_here(),
            "module": "infra.training.sft",
            "config": self.folder / "train.config.json",
            "log": log,
            "ranks": 1,
            "paths": (self.folder,),
            "environment": {"NCCL_DEBUG": "WARN"},
        }
        self.offer = Offer(**{**plain, **changes})
        self.say()

    def say(self) -> None:
        write(offer_path(self.folder), self.offer)
        self.count += 1
        beat(offer_path(self.folder), self.count)

    def begin(self, agent: Agent) -> None:
        self.offer = self.offer.model_copy(update={"port": 1, "sessions": {1: agent.sign.by.session}})
        self.say()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Ranks, dict[str, Any]]]:
    """The torchruns that agents started, each with its arguments."""
    found: list[tuple[Ranks, dict[str, Any]]] = []

    def start(_module: str, _config: Path, **more: Any) -> Ranks:
        found.append((Ranks(), more))
        return found[-1][0]

    monkeypatch.setattr(nodes, "start", start)
    monkeypatch.setattr(node, "TAKEN_S", 1.0)
    return found


@pytest.fixture
def flow(tmp_path: Path) -> FakeFlow:
    return FakeFlow(tmp_path)


def steps(agent: Agent, flow: FakeFlow, number: int = 3) -> Sign:
    for _ in range(number):
        flow.say()
        agent.step()
    found = read(sign_path(flow.folder, 1), Sign)
    assert found is not None
    return found


def test_an_agent_joins_begins_once_and_waits_for_the_next(flow: FakeFlow, tmp_path: Path, started) -> None:
    agent = Agent(1, tmp_path)
    first = steps(agent, flow)
    assert (first.joined, first.refused, started) == (flow.offer.by.session, "", [])
    flow.begin(agent)
    steps(agent, flow)
    ((ranks, more),) = started
    assert (more["place"].node, more["place"].nodes, more["place"].address) == (1, 2, "127.0.0.1")
    assert more["log_path"] == tmp_path / "train.node1.log"
    assert more["env"]["NCCL_DEBUG"] == "WARN"
    ranks.status = 1
    assert steps(agent, flow).status == 1
    assert len(started) == 1  # never twice
    flow.new()
    again = steps(agent, flow)
    assert (again.joined, again.status) == (flow.offer.by.session, None)
    flow.begin(agent)
    steps(agent, flow)
    assert len(started) == 2


def test_an_agent_that_was_started_again_stays_out_of_a_training_under_way(flow, tmp_path, started) -> None:
    first = Agent(1, tmp_path)
    steps(first, flow)
    flow.begin(first)
    first.close()
    second = Agent(1, tmp_path)
    assert steps(second, flow).joined is None
    assert started == []


@pytest.mark.parametrize("end", ["removed", "replaced", "silent"])
def test_ranks_end_with_the_training_and_with_the_flow(end, flow, tmp_path, started, monkeypatch) -> None:
    agent = Agent(1, tmp_path)
    steps(agent, flow)
    flow.begin(agent)
    steps(agent, flow)
    if end == "removed":
        offer_path(tmp_path).unlink()
    elif end == "replaced":
        flow.new()
    else:
        monkeypatch.setattr(agent._offers, "_clock", lambda: time.monotonic() + 4)
    agent.step()
    assert started[0][0].status == -9
    assert agent.process is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"facts": {"Python": "3.11.1"}}, "must be set up as the flow's machine is"),
        ({"paths": (Path("/nowhere/model"),)}, "/nowhere/model cannot be seen on"),
        ({"hosts": ("127.0.0.1",)}, "has 1 hosts, so there is no node 1"),
        ({"hosts": ("gpu-0.invalid", "gpu-1")}, "'gpu-0.invalid', cannot be reached"),
    ],
)
def test_an_agent_refuses_with_a_reason(changes, said, flow, tmp_path, started) -> None:
    flow.new(**changes)
    agent = Agent(1, tmp_path)
    assert said in steps(agent, flow).refused
    flow.begin(agent)
    steps(agent, flow)
    assert started == []


def test_a_number_is_given_to_one_agent(tmp_path: Path, started, monkeypatch) -> None:
    agent = Agent(1, tmp_path)
    elsewhere = agent.sign.by.model_copy(update={"machine": "another"})
    write(sign_path(tmp_path, 1), agent.sign.model_copy(update={"by": elsewhere}))
    counts = iter(range(1, 100))

    def later(_: float) -> None:
        beat(sign_path(tmp_path, 1), next(counts))

    with monkeypatch.context() as living:
        living.setattr(node.time, "sleep", later)  # the other one beats meanwhile
        with pytest.raises(BadInput, match=rf"node 1 of {tmp_path} has an agent already, process {os.getpid()} on"):
            Agent(1, tmp_path)
    Agent(1, tmp_path)  # silent, so it is dead


# ---- the flow's side


def test_a_folder_that_is_not_shared_is_refused_with_its_name_and_the_host(tmp_path: Path) -> None:
    hosts = Hosts(hosts=(*LOOPBACK, "127.0.0.3"), join_timeout_s=1)
    write(sign_path(tmp_path, 2), Sign(by=Who.me(), node=2, facts=facts_here()))  # and never a beat
    with pytest.raises(BadInput) as error:
        check_hosts(hosts, tmp_path)
    said = str(error.value)
    assert "1 of 3 hosts came within 1 s: node 0 (127.0.0.1, this machine)" in said
    assert f"node 1 (127.0.0.2): no agent has written to {tmp_path}/nodes" in said
    assert f"node 2 (127.0.0.3): its agent (process {os.getpid()} on {socket.gethostname()}) gave no sign" in said
    assert f"--folder {tmp_path}" in said
    assert f"{tmp_path} is not the folder of that name here on {socket.gethostname()}" in said


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("a file")
    with pytest.raises(BadInput, match=rf"shared folder {tmp_path} on {socket.gethostname()}"):
        check_hosts(Hosts(hosts=LOOPBACK), tmp_path)


def test_an_agent_with_other_libraries_stops_the_run_at_its_start(tmp_path: Path) -> None:
    theirs = {**facts_here(), "Python": "3.12.9"}
    write(sign_path(tmp_path, 1), Sign(by=Who.me(), node=1, facts=theirs))
    team = Team(Hosts(hosts=LOOPBACK, join_timeout_s=5), tmp_path)
    count = iter(range(1, 100))
    with pytest.raises(BadInput, match=r"node 1 \(127.0.0.2\) .* Python: 3.12.9 and not"):
        team.gathered(lambda _: "", lambda: beat(sign_path(tmp_path, 1), next(count)))


def test_two_runs_take_turns_and_a_dead_one_leaves_its_place(flow: FakeFlow, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    flow.new(by=Who.me().model_copy(update={"pid": dead.pid}))
    slot, other = Slot(tmp_path, 30), Slot(tmp_path, 30)
    mine = flow.offer.model_copy(update={"by": slot.me})
    with slot.held(mine):
        slot.beat()
        write(offer_path(tmp_path), flow.offer.model_copy(update={"by": other.me}))
        with pytest.raises(TrainerError, match="another run took the agents"):
            slot.beat()
    assert offer_path(tmp_path).exists()  # the other's


def test_an_offer_of_other_code_is_no_hindrance_once_its_run_is_dead(flow: FakeFlow, tmp_path: Path) -> None:
    told = json.loads(flow.offer.model_dump_json()) | {"new_field": 1}
    told["by"]["pid"] = 2**22 + 1
    offer_path(tmp_path).write_text(json.dumps(told))
    slot = Slot(tmp_path, 30)
    with slot.held(flow.offer.model_copy(update={"by": slot.me})):
        slot.beat()
    assert not offer_path(tmp_path).exists()


def test_the_machine_that_failed_is_named_and_not_those_that_it_cut_off(flow: FakeFlow, tmp_path: Path) -> None:
    flow.new(hosts=("gpu-0", "gpu-1", "gpu-2"))
    team = Team(Hosts(hosts=flow.offer.hosts), tmp_path)
    cut_off = "RuntimeError: [/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711\n"
    node_log(flow.offer.log, 0).write_text(cut_off)
    node_log(flow.offer.log, 1).write_text("ValueError: node one is out of luck\n")
    logs = dict.fromkeys(range(3), 0)
    said = nodes._failure({0: "ended with status 1", 1: "ended with status 1"}, team, flow.offer, logs)
    assert said.endswith("its last lines:\nValueError: node one is out of luck")
    assert "node 1 (gpu-1) ended with status 1; node 0 (gpu-0) ended with status 1 as well, log:" in said
    node_log(flow.offer.log, 2).write_text("the last thing it said\n")
    said = nodes._failure({0: "ended with status 1", 2: "was lost: its agent ... was killed"}, team, flow.offer, logs)
    assert "node 2 (gpu-2) was lost" in said
    assert said.endswith("the last thing it said")
