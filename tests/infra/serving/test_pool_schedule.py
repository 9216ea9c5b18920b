"""Which request a server takes next: groups stay together, suspects are sent alone. Nothing is sent here."""

from __future__ import annotations

import threading
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from infra.serving.schedule import Queue, Schedule, Turn


def names(groups: int, size: int) -> list[list[str]]:
    return [[f"{group}-{number}" for number in range(size)] for group in range(groups)]


# ---- the queue


@given(st.lists(st.integers(0, 6), max_size=12), st.lists(st.integers(0, 3), max_size=80), st.integers(0, 3))
def test_every_request_is_taken_once_whichever_servers_take_or_die(
    sizes: list[int], takers: list[int], dying: int
) -> None:
    groups = [[f"{group}-{number}" for number in range(size)] for group, size in enumerate(sizes)]
    queue, taken = Queue(groups), []
    for turn, server in enumerate(takers):
        if turn % 7 == 6:
            queue.lost(dying)
        taken.append(queue.take(server))
    rest = iter(lambda: queue.take(9), None)
    found = [*(each for each in taken if each is not None), *rest]
    assert Counter(found) == Counter(each for group in groups for each in group)


def test_a_group_stays_on_a_server_which_then_helps_with_the_others():
    queue = Queue(names(3, 2))
    assert [queue.take("a"), queue.take("b"), queue.take("b"), queue.take("b"), queue.take("a")] == [
        "0-0",
        "1-0",
        "1-1",
        "2-0",
        "0-1",
    ]
    assert [queue.take("a"), queue.take("a")] == ["2-1", None]  # of b's group


def test_the_rest_of_a_dead_servers_group_comes_next():
    queue = Queue(names(3, 2))
    assert (queue.take("a"), queue.take("b")) == ("0-0", "1-0")
    queue.lost("a")
    assert [queue.take("b") for _ in range(5)] == ["1-1", "0-1", "2-0", "2-1", None]


# ---- the schedule


def test_a_server_takes_requests_in_order_until_none_is_left():
    schedule, lock = Schedule(Queue(names(1, 2))), threading.Lock()
    assert [schedule.take("a", lock) for _ in range(3)] == [Turn("0-0", False), Turn("0-1", False), None]
    assert not lock.locked()


def test_a_suspect_waits_for_a_free_server_and_the_others_wait_for_it():
    schedule, lock = Schedule(Queue(names(1, 3))), threading.Lock()
    busy = schedule.take("a", lock)
    schedule.suspect("0-9")
    assert schedule.take("a", lock) is None  # "0-0" is in flight
    schedule.release("a", lock, busy)
    suspect = schedule.take("a", lock)
    assert suspect == Turn("0-9", True)
    assert schedule.take("a", lock) is None  # the suspect is alone
    assert schedule.take("b", threading.Lock()) == Turn("0-1", False)  # another server is not concerned
    schedule.release("a", lock, suspect)
    assert schedule.take("a", lock) == Turn("0-2", False)


def test_suspects_are_handed_to_different_servers():
    schedule, a, b = Schedule(Queue([])), threading.Lock(), threading.Lock()
    for name in ("1", "2", "3"):
        schedule.suspect(name)
    assert [schedule.take("a", a), schedule.take("b", b), schedule.take("b", b)] == [
        Turn("1", True),
        Turn("2", True),
        None,
    ]


def test_a_suspect_of_another_shard_blocks_the_server():
    one, other, lock = Schedule(names(1, 1)), Schedule(Queue(names(1, 2))), threading.Lock()
    one.suspect("s")
    turn = one.take("a", lock)
    assert other.take("a", lock) is None
    other.suspect("t")
    assert other.take("a", lock) is None
    one.release("a", lock, turn)
    assert other.take("a", lock) == Turn("t", True)


@given(st.lists(st.integers(0, 6), max_size=6), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), max_size=120))
def test_each_request_ends_once_and_is_quarantined_only_after_two_deaths(sizes, events):
    """A random walk: each of two places takes a request, answers one, or loses its server and gets another."""
    groups = [[f"{group}-{number}" for number in range(size)] for group, size in enumerate(sizes)]
    schedule, ended, deaths = Schedule(Queue(groups)), Counter[str](), Counter[str]()
    servers, flying = [("a", threading.Lock()), ("b", threading.Lock())], {0: [], 1: []}

    def finish(place: int, turn: Turn) -> None:
        schedule.release(*servers[place], turn)
        ended[turn.request_id] += 1

    for number, (place, event) in enumerate(events):
        if event < 3 and (turn := schedule.take(*servers[place])) is not None:
            flying[place].append(turn)
        elif event < 5 and flying[place]:
            finish(place, flying[place].pop())
        elif event == 5:
            for turn in flying[place]:
                deaths[turn.request_id] += 1
                if turn.suspect:
                    assert deaths[turn.request_id] == 2
                    finish(place, turn)
                else:
                    schedule.suspect(turn.request_id)
                    schedule.release(*servers[place], turn)
            schedule.lost(servers[place][0])
            servers[place], flying[place] = (str(number), threading.Lock()), []
        suspects = [turn for turn in flying[place] if turn.suspect]
        assert not suspects or len(flying[place]) == 1  # alone
    for place in (0, 1):
        for turn in flying[place]:
            finish(place, turn)
    while (turn := schedule.take(*servers[0])) is not None:
        finish(0, turn)
    assert ended == Counter(each for group in groups for each in group)


def test_a_request_that_was_not_sent_is_no_suspect():
    schedule, lock = Schedule(Queue(names(1, 3))), threading.Lock()
    turn = schedule.take("a", lock)
    schedule.put_back(turn)
    schedule.release("a", lock, turn)
    assert schedule.take("b", lock) == Turn("0-0", suspect=False)
    schedule.suspect("0-1")
    suspect = schedule.take("a", lock)
    schedule.put_back(suspect)
    schedule.release("a", lock, suspect)
    assert schedule.take("a", lock) == Turn("0-1", suspect=True)
