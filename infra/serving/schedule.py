"""Which request a server takes next: of one group of requests after another, and suspects alone."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol


class Waiting(Protocol):
    """Requests that are still to be sent."""

    def take(self, server: object) -> str | None:
        """The next request for a server; None if there is none for it now."""

    def put_back(self, request_id: str) -> None:
        """Put a request that was taken, but not sent, first."""

    def lost(self, server: object) -> None:
        """Hand what a dead server would have taken to the others."""


class Queue:
    """The ids of the requests that are still to be sent, in groups."""

    def __init__(self, groups: Iterable[Iterable[str]]) -> None:
        self._groups = deque(found for group in groups if (found := deque(group)))
        self._own: dict[object, deque[str]] = {}

    def take(self, server: object) -> str | None:
        """The next request for a server: of its own group, else of the next group, else of the largest rest of another
        server's group; None if all are taken."""
        group = self._own.get(server)
        if not group and self._groups:
            group = self._own[server] = self._groups.popleft()
        if not group:
            group = max(self._own.values(), key=len, default=None)
        return group.popleft() if group else None

    def put_back(self, request_id: str) -> None:
        """Put a request that was taken, but not sent, first in the queue."""
        self._groups.appendleft(deque([request_id]))

    def lost(self, server: object) -> None:
        """Put the rest of a dead server's group first in the queue."""
        if rest := self._own.pop(server, None):
            self._groups.appendleft(rest)


class Homes:
    """The ids of requests that come little by little, in groups that share a prefix. All of a group go to one server,
    its home, as long as it has room; groups are spread evenly over the servers."""

    def __init__(self, living: Callable[[], Sequence[object]], full: Callable[[object], bool]) -> None:
        """`living`: the servers that are up. `full`: whether a server can take no further request now, or is dead."""
        self._living, self._full = living, full
        self._home: dict[str, object] = {}
        self._groups: Counter[object] = Counter()
        self._own: dict[object, deque[str]] = {}
        self._first: deque[str] = deque()

    def add(self, group: str, request_ids: Iterable[str]) -> None:
        """Requests of a group."""
        living = self._living()
        if self._home.get(group) not in living:
            home = min(living, key=lambda server: self._groups[server])
            self._home[group] = home
            self._groups[home] += 1
        self._own.setdefault(self._home[group], deque()).extend(request_ids)

    def take(self, server: object) -> str | None:
        """The next request for a server: of its own groups, else of the full server with most requests waiting."""
        if self._first:
            return self._first.popleft()
        if own := self._own.get(server):
            return own.popleft()
        others = [waiting for other, waiting in self._own.items() if waiting and self._full(other)]
        return max(others, key=len).popleft() if others else None

    def put_back(self, request_id: str) -> None:
        """Put a request that was taken, but not sent, first; any server takes it."""
        self._first.appendleft(request_id)

    def lost(self, server: object) -> None:
        """Hand a dead server's requests to the others, which its groups have as their homes from now on."""
        self._first.extend(self._own.pop(server, ()))
        self._home = {group: home for group, home in self._home.items() if home is not server}
        del self._groups[server]


class Turn(NamedTuple):
    """The request, or the pack of requests, that a server takes next."""

    request_id: str
    suspect: bool
    """Whether it was in flight when a server died, so that it is sent alone."""
    size: int = 1
    """How much it counts among those in flight."""


class Schedule:
    """Decides which request of a shard a server takes next. It sends nothing and never waits.

    A suspect waits for a server with no other request of this shard and no suspect of another shard (`lock`, see
    `Pool.suspect_lock`). As long as a suspect waits, no other request is handed out, so that a server becomes free.
    """

    def __init__(self, waiting: Waiting, size: Callable[[str], int] = lambda _request_id: 1) -> None:
        """`size`: how much a request counts in `in_flight`."""
        self._queue, self._size = waiting, size
        self._suspects: deque[str] = deque()
        self.in_flight: Counter[object] = Counter()
        """Requests of this shard in flight, by server, as `size` counts them."""

    def take(self, server: object, lock: threading.Lock) -> Turn | None:
        """The server's next request; None if it has to wait. Every turn is given back with `release`."""
        if self._suspects:
            if self.in_flight[server] or not lock.acquire(blocking=False):
                return None
            turn = Turn(self._suspects.popleft(), suspect=True)
        else:
            if lock.locked() or (request_id := self._queue.take(server)) is None:
                return None
            turn = Turn(request_id, suspect=False, size=self._size(request_id))
        self.in_flight[server] += turn.size
        return turn

    def release(self, server: object, lock: threading.Lock, turn: Turn) -> None:
        """The request of a turn is no longer in flight, whatever came of it."""
        self.in_flight[server] -= turn.size
        if turn.suspect:
            lock.release()

    def put_back(self, turn: Turn) -> None:
        """Hand out the request of a turn again: it was not sent."""
        if turn.suspect:
            self._suspects.appendleft(turn.request_id)
        else:
            self._queue.put_back(turn.request_id)

    def suspect(self, request_id: str) -> None:
        """Have a request sent again, alone: it was in flight when a server died."""
        self._suspects.append(request_id)

    def lost(self, server: object) -> None:
        """Hand the rest of a dead server's group to the others."""
        self._queue.lost(server)


def packed(groups: Iterable[Sequence[str]], together: int) -> dict[str, list[str]]:
    """The requests of each group in packs of up to `together`, by name; a pack of one has its request's name."""
    packs: dict[str, list[str]] = {}
    for group in groups:
        for begin in range(0, len(group), together):
            own = list(group[begin : begin + together])
            packs[own[0] if len(own) == 1 else f"{own[0]} and {len(own) - 1} more"] = own
    return packs
