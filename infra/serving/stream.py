"""Requests to the servers of a pool that come little by little, many askers at once: the stream of a search.

Servers die, refuse and come back as in `infra.serving.pool.complete_on`, which is for requests that are all known
beforehand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from infra.serving.completions import Completion, Request, Sampling
from infra.serving.pool import Pool, Requests, Shard
from infra.serving.schedule import Homes, Schedule, packed

OnResult = Callable[[Request, list[Completion]], None]
OnQuarantine = Callable[[Request, str], None]


@dataclass
class _Asked:
    """Requests that one asker waits for."""

    sampling: Sampling
    on_result: OnResult
    on_quarantine: OnQuarantine
    left: int
    done: asyncio.Future[None]

    def ended(self) -> None:
        """One of them has ended."""
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class Stream:
    """Requests under way; made by `streaming`. All of it is used from one event loop."""

    def __init__(self, pool: Pool, max_in_flight: int, together: int) -> None:
        self._together = min(together, max_in_flight)
        self._max_in_flight = max_in_flight
        self._requests = Requests({}, self._request, self._sampling, self._result, self._quarantined)
        self._homes = Homes(pool.living, self._full)
        self._shard = Shard(pool, Schedule(self._homes, self._size), self._requests)
        self._asked: dict[str, tuple[Request, _Asked]] = {}
        self._over = False

    async def ask(
        self,
        group: str,
        requests: Sequence[Request],
        sampling: Sampling,
        on_result: OnResult,
        on_quarantine: OnQuarantine,
    ) -> None:
        """Sample for every request, and wait until all have ended.

        Args:
            group: names those that share a prompt prefix, and so should go to the same server; also in later calls.
            requests: their ids are unique among those under way. Up to `together` of them travel together.
            on_result: gets each finished request at once.
            on_quarantine: gets each quarantined request and the reason.
        """
        if not requests:
            return
        done = asyncio.get_running_loop().create_future()
        asked = _Asked(sampling, on_result, on_quarantine, len(requests), done)
        self._asked |= {each.request_id: (each, asked) for each in requests}
        packs = packed([[each.request_id for each in requests]], self._together)
        self._requests.packs |= packs
        self._homes.add(group, packs)
        self._shard.changed.set()
        await done
        for name in packs:
            del self._requests.packs[name]

    async def serve(self) -> None:
        """Hand out requests until `end`."""
        await self._shard.serve(lambda: self._over, self._max_in_flight, self._max_in_flight)

    def end(self) -> None:
        """No further request comes."""
        self._over = True
        self._shard.changed.set()

    def _full(self, server: Any) -> bool:
        return not self._shard.pool.holds(server) or self._shard.schedule.in_flight[server] >= self._max_in_flight

    def _size(self, name: str) -> int:
        """Requests are counted, and not the packs that they travel in: of what little an asker wants, packs are seldom
        full."""
        return len(self._requests.packs.get(name, [name]))

    def _request(self, name: str) -> Request:
        return self._asked[name][0]

    def _sampling(self, name: str) -> Sampling:
        return self._asked[name][1].sampling

    def _result(self, request: Request, completions: list[Completion]) -> None:
        _, asked = self._asked.pop(request.request_id)
        asked.on_result(request, completions)
        asked.ended()

    def _quarantined(self, request: Request, reason: str) -> None:
        _, asked = self._asked.pop(request.request_id)
        asked.on_quarantine(request, reason)
        asked.ended()


@asynccontextmanager
async def streaming(pool: Pool, *, max_in_flight: int, together: int = 1) -> AsyncIterator[Stream]:
    """A stream to the servers of a pool, `max_in_flight` requests at a time on each. Requests that travel together are
    sent as soon as one of them may be, so that the last ones may exceed the limit.

    Args:
        together: requests of one call of `ask` that travel in one HTTP request; more than 1 only for requests without
            seeds.

    Raises:
        Whatever `infra.serving.pool.complete_on` raises ends the block, too.
    """
    stream = Stream(pool, max_in_flight, together)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.serve())
            yield stream
            stream.end()
    except ExceptionGroup as failures:
        raise _first(failures) from None


def _first(failures: ExceptionGroup) -> Exception:
    """The first failure; the groups of tasks are nested."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
