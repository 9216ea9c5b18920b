"""What the fleet of a run knows of its servers, without a cluster."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from ray.exceptions import RayActorError

from infra.cluster import fleet as module
from infra.cluster.config import RayConfig
from infra.cluster.fleet import Address, Fleet, Group
from infra.cluster.servers import ClusterPool, ClusterServers, NodeServer, SuspectLock
from infra.serving.servers import ServingConfig
from infra.serving.vllm_server import ServerError
from infra.settings import Settings
from infra.store.manifest import Ref

SERVING = ServingConfig(policy={"max_model_len": 64}, reward={"max_model_len": 64})
MODEL = Ref(kind="model", step="imported", key="m", uri="m", digest="d", rows=1)


KILLED = ServerError("ended with status 137")
KILLED.killed = True


class Called:
    """The fleet as its actor: `METHOD.remote(...)` is called at once, and `ray.get` gives what it returned."""

    def __init__(self, fleet: Any) -> None:
        self.fleet = fleet

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self.fleet, name))})


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    monkeypatch.setattr("ray.get", lambda found, timeout=None: found)
    monkeypatch.setattr("ray.kill", lambda actor: None)
    monkeypatch.setattr(Fleet, "_watch", lambda self: None)
    return Fleet(SERVING, RayConfig(restarts=1), Settings(store=str(tmp_path)))


class Actor:
    """An actor whose server lives, or which itself, or its server, died of an error."""

    def __init__(self, death: Exception | None = None) -> None:
        self.death = death
        self.check = type("Method", (), {"remote": staticmethod(self._check)})
        self.stop = type("Method", (), {"remote": staticmethod(lambda: None)})

    def _check(self) -> None:
        if self.death:
            raise self.death


def serving(fleet: Fleet, *actors: Actor) -> Group:
    """A fleet that serves `MODEL` as policy with these actors, at http://h:0, http://h:1, ..."""
    group = Group(MODEL, restarts_left=1)
    for number, actor in enumerate(actors):
        url = f"http://h:{number}"
        group.living[url] = (Address(url, "policy", SecretStr("key")), actor)
        group.actors[actor] = ""
    fleet._groups["policy"] = group
    return group


def test_only_one_suspect_at_a_time_is_alone_with_a_server(fleet: Fleet) -> None:
    one, other = (SuspectLock(Called(fleet), "http://h:0") for _ in range(2))
    assert one.acquire(blocking=False)
    assert not one.acquire(blocking=False)
    assert not other.acquire(blocking=False)
    assert one.locked()
    assert other.locked()
    one.release()
    assert other.acquire(blocking=False)
    other.release()


def test_the_lock_of_a_suspect_whose_process_died_is_free_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SuspectLock(Called(fleet), "http://h:0").acquire(blocking=False)
    other = SuspectLock(Called(fleet), "http://h:0")
    assert not other.acquire(blocking=False)
    monkeypatch.setattr(module, "LOCK_S", 0.0)
    assert other.acquire(blocking=False)


def test_a_dead_server_is_dropped_and_replaced_as_often_as_allowed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Group] = []
    monkeypatch.setattr(fleet, "_begin", lambda role, group: begun.append(group))
    group = serving(fleet, Actor(KILLED), Actor(KILLED))
    for url in ("http://h:0", "http://h:0", "http://h:1"):  # the first is known to be dead by then
        with pytest.raises(ServerError, match="ended with status 137"):
            fleet.check("policy", url)
    assert begun == [group]
    with pytest.raises(ServerError, match=r"the last of 0 servers is lost, and ray\.restarts is used up: .* 137"):
        fleet.living("policy", MODEL)


def test_a_suspect_gives_back_the_servers_that_it_cost(fleet: Fleet) -> None:
    group = serving(fleet, Actor())
    fleet.allow("policy", 2)
    assert group.restarts_left == 3


@pytest.mark.parametrize(
    ("death", "killed"),
    [(ServerError("ended with status 1"), False), (KILLED, True), (RayActorError(error_msg="its node was lost"), True)],
)
def test_whoever_finds_a_dead_server_learns_whether_it_was_killed(fleet: Fleet, monkeypatch, death, killed) -> None:
    monkeypatch.setattr(fleet, "_begin", lambda role, group: None)
    monkeypatch.setattr("infra.cluster.servers.REFRESH_S", 0.0)
    serving(fleet, Actor(death))
    server = ClusterPool(Called(fleet), "policy", MODEL).living()[0]
    fleet.lost("policy", "http://h:0", "connection refused")  # by another step
    with pytest.raises(ServerError, match=str(death)) as found:
        server.check()
    assert found.value.killed is killed


def test_the_pool_follows_the_fleet(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.cluster.servers.REFRESH_S", 0.0)
    group = serving(fleet, Actor(), Actor())
    pool = ClusterPool(Called(fleet), "policy", MODEL)
    first, second = pool.living()
    assert first.headers == {"Authorization": "Bearer key"}
    del group.living["http://h:0"]
    group.living["http://h:2"] = (Address("http://h:2", "policy", SecretStr("other")), Actor())
    assert [each.url for each in pool.living()] == ["http://h:1", "http://h:2"]
    assert pool.living()[0] is second  # so that the requests in flight on it are still counted
    assert not pool.holds(first)
    with pytest.raises(ServerError, match="http://h:0 is dead"):
        first.check()


def test_a_model_that_is_no_longer_served_is_an_error(fleet: Fleet) -> None:
    serving(fleet, Actor())
    fleet.stop(["policy"])
    with pytest.raises(ServerError, match="the servers of imported/m were stopped"):
        fleet.living("policy", MODEL)


def test_servers_can_be_sent_to_a_node_and_show_no_key() -> None:
    servers = ClusterServers(SERVING, None, Path("/work"), SecretStr("secret"))
    again = pickle.loads(pickle.dumps(servers))  # noqa: S301  # ours
    assert (again.work_dir, again.options("policy")) == (servers.work_dir, SERVING.policy)
    assert "secret" not in repr(vars(servers))
    assert "key" not in repr(NodeServer(Address("http://h:0", "policy", SecretStr("key-1")), None, "policy"))


@pytest.mark.parametrize(("again", "left", "begun"), [(False, 1, 0), (True, 1, 1), (True, 0, 0)])
def test_a_server_that_does_not_start_is_replaced_if_others_did(fleet: Fleet, monkeypatch, again, left, begun) -> None:
    started: list[Group] = []
    monkeypatch.setattr(fleet, "_begin", lambda role, group: started.append(group))
    group = serving(fleet)
    group.starting, group.restarts_left = 1, left
    fleet._gone("policy", group, None, "killed", again=again)
    assert len(started) == begun
    if not begun:
        with pytest.raises(ServerError, match="killed"):
            fleet.living("policy", MODEL)


def test_the_error_of_the_last_server_has_the_cause_that_requests_saw(fleet: Fleet) -> None:
    serving(fleet, Actor()).restarts_left = 0
    pool = ClusterPool(Called(fleet), "policy", MODEL)
    with pytest.raises(ServerError, match=r"ray\.restarts is used up: connection refused"):
        pool.lost(pool.living()[0], ServerError("connection refused"))


@pytest.mark.parametrize("killed", [False, True])
def test_a_first_server_that_is_killed_while_it_starts_is_started_again(fleet: Fleet, monkeypatch, killed) -> None:
    class Starting(Actor):
        def __init__(self) -> None:
            super().__init__()
            self.start = type("Method", (), {"remote": staticmethod(self._start)})

        def _start(self, _model: Ref, _number: int) -> None:
            error = ServerError("ended with status 137" if killed else "no such layer")
            error.killed = killed
            raise error

    begun = []
    made = type("Made", (), {"remote": staticmethod(lambda *_: Starting())})
    actors = type("Actors", (), {"options": staticmethod(lambda **_: made)})
    monkeypatch.setattr(module, "ServerActor", actors)
    monkeypatch.setattr(fleet, "_place", lambda *_: "SPREAD")
    monkeypatch.setattr(fleet, "_begin", lambda role, group: begun.append(role))
    group = Group(MODEL, restarts_left=1, starting=1)
    fleet._start("reward", group, 0)
    assert begun == (["reward"] if killed else [])
    assert group.failed == ("ended with status 137" if killed else "no such layer")
