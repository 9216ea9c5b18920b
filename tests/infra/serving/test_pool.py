"""Requests spread over several servers: groups stay together, a dead server's requests go to the others, and requests
that kill servers are quarantined."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from typing import Any

import pytest
from vllm_stub import Stub, stub

from infra.serving.completions import CompletionError, Request, Sampling
from infra.serving.pool import Pool, complete_on
from infra.serving.vllm_server import ServerError

__all__ = ["stub"]


def run(pool: Pool, groups: list[list[str]], in_flight: int = 3, together: int = 1) -> tuple[list[str], dict[str, str]]:
    """The answered requests, in order, and the reasons by quarantined request."""
    answered: list[str] = []
    quarantined: dict[str, str] = {}
    running = complete_on(
        pool,
        groups,
        lambda name: Request(name, (1, 2), None),
        Sampling(n=1, max_tokens=3),
        max_in_flight=in_flight,
        on_result=lambda request, _: answered.append(request.request_id),
        on_quarantine=lambda request, reason: quarantined.update({request.request_id: reason}),
        together=together,
    )
    asyncio.run(running)
    return answered, quarantined


def names(groups: int, size: int) -> list[list[str]]:
    return [[f"{group}-{number}" for number in range(size)] for group in range(groups)]


# ---- several servers


def test_all_are_answered_once_with_a_bounded_number_in_flight_on_each_server(stub):
    servers = [stub(), stub()]
    answered, quarantined = run(Pool(servers), names(10, 7))
    assert sorted(answered) == sorted(each for group in names(10, 7) for each in group)
    assert quarantined == {}
    assert sorted(servers[0].received + servers[1].received) == sorted(answered)
    assert all(server.max_open <= 3 and len(server.received) > 7 for server in servers)


def test_small_shards_are_dealt_to_all_servers(stub):
    """Four shards of six queries, each with different examples, and eight servers with room for all of a shard."""
    gate = threading.Event()
    servers = [stub(gate=gate) for _ in range(8)]
    pool, answered = Pool(servers), []
    groups = [[[f"{shard}:{number}"] for number in range(6)] for shard in range(4)]
    shards = [threading.Thread(target=lambda each=each: answered.append(run(pool, each, 16)[0])) for each in groups]
    for shard in shards:
        shard.start()
    deadline = time.monotonic() + 10
    while sum(len(server.received) for server in servers) < 24 and time.monotonic() < deadline:
        time.sleep(0.02)
    gate.set()
    for shard in shards:
        shard.join(60)
    assert [len(server.received) for server in servers] == [3] * 8
    assert len({name for each in answered for name in each}) == 24


def test_a_refused_request_is_quarantined_with_the_reason_and_the_others_are_answered(stub):
    server = stub(refused=frozenset({"1-1", "2-0"}))
    answered, quarantined = run(Pool([server]), names(4, 3))
    assert len(answered) == 10
    assert set(quarantined) == {"1-1", "2-0"}
    assert all(
        re.search(r"^was refused: request .* the server answered 400: .*the model's maximum is 8192", reason, re.S)
        for reason in quarantined.values()
    )
    assert not server.dead


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_refusal_that_concerns_every_request_ends_the_run(stub, status):
    with pytest.raises(CompletionError, match=f"the server answered {status}"):
        run(Pool([stub(refused=frozenset({"0-1"}), refusal=status)]), names(1, 3))


def test_one_server_gets_the_groups_in_their_order(stub):
    server = stub()
    run(Pool([server]), names(5, 4), in_flight=1)
    assert server.received == [each for group in names(5, 4) for each in group]


def test_a_dead_servers_requests_go_to_the_others(stub, caplog):
    dying, living = stub(dies_after=5), stub()
    with caplog.at_level(logging.WARNING, "infra.serving.pool"):
        answered, quarantined = run(Pool([dying, living]), names(8, 5))
    assert sorted(answered) == sorted(each for group in names(8, 5) for each in group)
    assert quarantined == {}
    assert dying.stopped
    assert not living.stopped
    assert caplog.text.count("a server is lost; its requests go to the other 1: ended with status 137") == 1


def test_an_unreachable_server_is_lost_as_well(stub):
    gone, living = stub(), stub()
    gone.close()
    answered, _ = run(Pool([gone, living]), names(4, 3), in_flight=1)
    assert len(answered) == 12


def test_the_last_server_is_restarted_twice_at_most(stub, caplog):
    made: list[Stub] = []

    def restarted(_dead: Any) -> Stub:
        made.append(stub(dies_after=4))
        return made[-1]

    with pytest.raises(ServerError, match="status 137"):
        run(Pool([stub(dies_after=4)], restarted), names(1, 60), in_flight=1)
    assert len(made) == 2
    with pytest.raises(ServerError, match="status 137"):
        run(Pool([stub(dies_after=0)]), names(1, 2))


def test_a_request_that_kills_twice_is_quarantined_and_the_others_are_answered(stub):
    made: list[Stub] = []

    def restarted(_dead: Any) -> Stub:
        made.append(stub("0-3", "0-7"))
        return made[-1]

    pool = Pool([stub("0-3", "0-7")], restarted)
    answered, quarantined = run(pool, names(1, 30))
    assert set(quarantined) == {"0-3", "0-7"}
    assert all("killed a server twice: ended with status 137" in reason for reason in quarantined.values())
    assert sorted(answered) == sorted(set(names(1, 30)[0]) - {"0-3", "0-7"})
    assert len(made) <= 4


@pytest.mark.parametrize("kills", [1, 2, 3, 4])
def test_a_request_whose_servers_are_killed_from_outside_is_no_cause(stub, kills):
    """The last request is in flight, and then alone, whenever a server is killed."""
    made = [stub("0-4", killed=True) for _ in range(kills)]
    rest = [*made, stub()]
    answered, quarantined = run(Pool([stub("0-4", killed=True)], lambda _dead: rest.pop(0)), names(1, 5), in_flight=1)
    assert sorted(answered) == names(1, 5)[0]
    assert quarantined == {}
    assert rest == []


def test_a_request_that_always_meets_a_killed_server_is_quarantined(stub):
    """Such as one that takes more memory than there is. The servers that it cost do not count for others."""
    made: list[Stub] = []

    def restarted(_dead: Any) -> Stub:
        made.append(stub("0-3", "0-7", killed=True))
        return made[-1]

    pool = Pool([stub("0-3", "0-7", killed=True)], restarted)
    answered, quarantined = run(pool, names(1, 12))
    assert quarantined == dict.fromkeys(
        ("0-3", "0-7"), "was alone on a server that was killed, 5 times: ended with status 137"
    )
    assert len(answered) == 10
    assert 10 <= len(made) <= 12


def test_suspects_are_sent_one_at_a_time(stub):
    """Every request in flight at a death is a suspect; if sent at once, several of them would be quarantined."""
    gate = threading.Event()
    dying = stub("0-5", gate=gate)
    threading.Timer(0.5, gate.set).start()
    answered, quarantined = run(Pool([dying], lambda _dead: stub("0-5")), names(1, 12), in_flight=12)
    assert set(quarantined) == {"0-5"}
    assert len(answered) == 11


def test_shards_that_share_a_pool_see_one_death(stub):
    dying, living = stub(dies_after=6), stub()
    pool = Pool([dying, living])
    found: list[list[str]] = []
    groups = [[[f"{shard}:{each}" for each in group] for group in names(6, 5)] for shard in range(3)]
    shards = [threading.Thread(target=lambda each=each: found.append(run(pool, each)[0])) for each in groups]
    for shard in shards:
        shard.start()
    for shard in shards:
        shard.join(60)
    assert sorted(name for each in found for name in each) == sorted(n for each in groups for g in each for n in g)
    assert pool.living() == [living]


@pytest.mark.parametrize(
    ("samples", "error"),
    [
        (2, pytest.raises(CompletionError, match="asked for 2 samples, got 1")),
        (1, pytest.raises(OSError, match="disk full")),
    ],
)
def test_a_bad_answer_and_an_error_of_the_receiver_end_the_run(stub, samples, error):
    def full(_request: Request, _samples: Any) -> None:
        raise OSError("disk full")

    server = stub()
    running = complete_on(
        Pool([server]),
        names(1, 50),
        lambda name: Request(name, (1,), None),
        Sampling(n=samples, max_tokens=3),
        max_in_flight=2,
        on_result=full,
        on_quarantine=full,
    )
    with error:
        asyncio.run(running)
    assert len(server.received) <= 4


def test_short_requests_travel_together_and_each_gets_its_own_answer(stub):
    server, found = stub(), dict[str, str]()
    running = complete_on(
        Pool([server]),
        [["5", "6", "7"], ["8"]],
        lambda name: Request(name, (int(name), 2), None),
        Sampling(n=1, max_tokens=3),
        max_in_flight=8,
        on_result=lambda request, samples: found.update({request.request_id: samples[0].text}),
        on_quarantine=lambda *_: pytest.fail("refused"),
        together=2,
    )
    asyncio.run(running)
    assert found == {"5": "5", "6": "6", "7": "7", "8": "8"}
    assert sorted(server.received) == ["5", "7", "8"]  # named after the first of each


@pytest.mark.parametrize(("in_flight", "sizes"), [(2, {2}), (8, {4})])
def test_no_more_travel_together_than_may_be_in_flight(stub, in_flight, sizes):
    server = stub()
    run(Pool([server]), names(1, 8), in_flight=in_flight, together=4)
    assert set(server.sizes) == sizes
    assert server.max_open * max(sizes) <= in_flight


def test_of_requests_that_are_refused_together_only_the_bad_one_is_quarantined(stub):
    groups = names(2, 6)
    server = stub(refused=frozenset({"0-0", "0-4"}))
    answered, quarantined = run(Pool([server]), groups, in_flight=8, together=4)
    assert set(quarantined) == {"0-0", "0-4"}  # "0-4" is the first of its pack
    assert sorted([*answered, *quarantined]) == sorted(name for group in groups for name in group)


def test_requests_that_were_together_when_a_server_died_are_suspects_one_by_one(stub):
    groups = names(1, 8)
    answered, quarantined = run(Pool([stub("0-0"), stub()], lambda _: stub()), groups, in_flight=8, together=4)
    assert sorted([*answered, *quarantined]) == sorted(groups[0])
    assert not quarantined  # alone on the second server, each is answered


def test_stopping_the_servers_ends_the_run(stub):
    gate = threading.Event()
    server = stub(gate=gate)
    pool = Pool([server], lambda _dead: stub())
    stopping = threading.Timer(0.3, lambda: (pool.stop(), setattr(server, "dead", True), gate.set()))
    stopping.start()
    with pytest.raises(ServerError, match="the servers were stopped"):
        run(pool, names(1, 5))
