"""Requests that come little by little: those of a group stay on one server, nobody waits for another asker, and deaths
and refusals are those of the pool."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_stub import Stub, stub

from infra.serving.completions import Request, Sampling
from infra.serving.pool import Pool
from infra.serving.schedule import Homes
from infra.serving.stream import streaming
from infra.serving.vllm_server import ServerError

__all__ = ["stub"]

ONE = Sampling(n=1, max_tokens=3)


def asked(pool: Pool, trees: int, turns: int, *, size: int = 4, in_flight: int = 8, together: int = 1) -> Any:
    """Each tree asks for `size` requests in each of its turns. The answered requests, and the quarantined ones."""
    answered: list[str] = []
    quarantined: dict[str, str] = {}

    async def run() -> None:
        async with streaming(pool, max_in_flight=in_flight, together=together) as stream:

            async def tree(number: int) -> None:
                for turn in range(turns):
                    names = [f"{number}/{turn}/{place}" for place in range(size)]
                    requests = [Request(name, (number + 1, 2), None) for name in names]
                    await stream.ask(
                        str(number),
                        requests,
                        ONE,
                        lambda request, _: answered.append(request.request_id),
                        lambda request, reason: quarantined.update({request.request_id: reason}),
                    )
                    assert set(names) <= {*answered, *quarantined}

            async with asyncio.TaskGroup() as group:
                for number in range(trees):
                    group.create_task(tree(number))

    asyncio.run(run())
    return answered, quarantined


def everything(trees: int, turns: int, size: int = 4) -> list[str]:
    return sorted(f"{n}/{turn}/{place}" for n in range(trees) for turn in range(turns) for place in range(size))


@pytest.mark.parametrize("together", [1, 4])
def test_a_trees_requests_stay_on_one_server_and_trees_are_spread_evenly(stub, together):
    servers = [stub(), stub(), stub()]
    answered, quarantined = asked(Pool(servers), 9, 5, in_flight=12, together=together)
    assert (sorted(answered), quarantined) == (everything(9, 5), {})
    trees = [{name.split("/")[0] for name in server.received} for server in servers]
    assert [len(each) for each in trees] == [3, 3, 3]
    assert {size for server in servers for size in server.sizes} == {together}
    assert all(server.max_open <= 12 // together for server in servers)


@pytest.mark.parametrize("in_flight", [16, 63])
def test_the_limit_counts_requests_whatever_the_size_of_their_packs(stub, in_flight):
    """Askers want four at a time, and a pack could have 32."""
    gate = threading.Event()
    server = stub(gate=gate)
    running = threading.Thread(
        target=asked, args=(Pool([server]), 40, 1), kwargs={"in_flight": in_flight, "together": 32}
    )
    running.start()
    most = -(-in_flight // 4)
    for _ in range(500):
        if server.open >= most:
            break
        running.join(0.01)
    running.join(0.1)
    gate.set()
    running.join(30)
    assert server.max_open == most
    assert set(server.sizes) == {4}
    assert len(server.received) == 40


def test_a_slow_request_holds_up_its_own_tree_only(stub):
    """Of two trees on two servers, one gets no answer before the other one is done."""
    gate = threading.Event()
    slow, fast = stub(gate=gate), stub()
    running = threading.Thread(target=asked, args=(Pool([slow, fast]), 2, 6))
    running.start()
    for _ in range(500):
        if len(fast.received) == 6 * 4:
            break
        running.join(0.01)
    assert (len(fast.received), len(slow.received)) == (6 * 4, 4)
    gate.set()
    running.join(30)
    assert len(slow.received) == 6 * 4


def test_whatever_kills_a_server_only_the_killer_is_quarantined(stub):
    """Also if requests of many trees were in flight."""
    killer = "3/1/2"
    servers = [stub(killer), stub(killer)]
    pool = Pool(servers, lambda dead: stub(killer))
    answered, quarantined = asked(pool, 8, 3)
    assert list(quarantined) == [killer]
    assert sorted([*answered, killer]) == everything(8, 3)


def test_a_dead_servers_trees_go_on_on_the_others(stub):
    servers = [stub(dies_after=6), stub()]
    answered, quarantined = asked(Pool(servers), 6, 4)
    assert (sorted(answered), quarantined) == (everything(6, 4), {})


def test_refused_together_they_are_asked_one_by_one(stub):
    server = stub(refused=frozenset({"1/0/0", "1/0/0 and 3 more"}))
    answered, quarantined = asked(Pool([server]), 3, 2, together=4)
    assert list(quarantined) == ["1/0/0"]
    assert sorted([*answered, "1/0/0"]) == everything(3, 2)


def test_without_a_server_all_end_with_its_error(stub):
    with pytest.raises(ServerError, match="status 137"):
        asked(Pool([stub(dies_after=3)]), 5, 5)


def test_the_error_of_an_asker_ends_all():
    class OwnError(Exception): ...

    async def run(pool: Pool) -> None:
        async with streaming(pool, max_in_flight=2):
            raise OwnError

    server = Stub()
    try:
        with pytest.raises(OwnError):
            asyncio.run(run(Pool([server])))
    finally:
        server.close()


def test_requests_that_come_while_a_death_is_being_noticed_are_taken_by_the_others():
    """The schedule knows of a death before the pool does."""
    living, full = ["x", "y"], {"x"}
    homes = Homes(lambda: living, lambda server: server in full)
    homes.add("a", ["a-0"])
    homes.lost("x")
    homes.add("a", ["a-1", "a-2"])
    assert [homes.take("y") for _ in range(4)] == ["a-0", "a-1", "a-2", None]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=30), st.data())
def test_every_request_is_taken_once_whichever_servers_die(adding, data):
    living, full = ["x", "y", "z"], set[str]()
    homes = Homes(lambda: living, lambda server: server in full)
    owed, taken = set[str](), Counter[str]()
    for number, (group, count) in enumerate(adding):
        names = [f"{group}-{number}-{place}" for place in range(count)]
        homes.add(group, names)
        owed |= set(names)
        full = data.draw(st.sets(st.sampled_from(living)))
        if len(living) > 1 and data.draw(st.integers(0, 9)) == 0:
            homes.lost(living.pop())
        for server in living:
            if (name := homes.take(server)) is not None:
                taken[name] += 1
    full = set()
    while any(taking := [homes.take(server) for server in living]):
        taken.update(name for name in taking if name is not None)
    assert taken == Counter(owed)
