"""The servers of one model: requests are dealt to them in groups, and a server that dies hands its own to the others.

A step's requests come in groups that share a prompt prefix. A server works through one group at a time and takes the
next request when it has room for it, so the emptiest server gets the next and a group stays on one server, in whose
prefix cache it is; where no whole group is left, a server helps with the largest rest of another's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import httpx

from infra.processes.watchdog import refuse_when_ending
from infra.serving.completions import (
    Completion,
    Request,
    Sampling,
    UnreachableError,
    http_client,
    sampler,
)
from infra.serving.vllm_server import ServerError

log = logging.getLogger(__name__)

RESTARTS = 2  # of the last server while a model is served; each request set aside allows for the two that it cost
_POLL_S = 0.2


class Server(Protocol):
    """A vLLM server: `infra.serving.vllm_server.VllmServer`, or `infra.serving.remote_server.RemoteServer`."""

    @property
    def url(self) -> str: ...

    @property
    def served_name(self) -> str: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def check(self) -> None: ...

    def stop(self) -> None: ...


class Pool:
    """The servers of one model, shared by all shards that run at once. All methods may be called from any thread."""

    def __init__(self, servers: Sequence[Server], restarted: Callable[[Server], Server] | None = None) -> None:
        """`restarted` starts anew the last server that died, and returns the new one; None where nobody can."""
        self._lock = threading.Lock()
        self._living = list(servers)
        self._restarted = restarted
        self._allowed = RESTARTS
        self._failed: ServerError | None = None
        self._lanes: dict[Server, threading.Lock] = {server: threading.Lock() for server in servers}

    def living(self) -> list[Server]:
        """The servers that are up, as far as is known. Raises `ServerError` when none is left."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            return list(self._living)

    def failed(self) -> bool:
        """Whether none is left, and none was started again."""
        with self._lock:
            return self._failed is not None

    def holds(self, server: Server) -> bool:
        """Whether a server is up, as far as is known."""
        with self._lock:
            return server in self._living

    def add(self, server: Server) -> None:
        """Take in a server that came (back) up."""
        with self._lock:
            self._living.append(server)
            self._lanes[server] = threading.Lock()

    def lost(self, server: Server, error: Exception) -> None:
        """Take a dead server out. The last one is started anew, which takes as long as it takes.

        Raises:
            ServerError: none is left, and none can be started, or `RESTARTS` were.
        """
        with self._lock:
            if server not in self._living:  # somebody told before
                return
            self._living.remove(server)
            server.stop()
            if self._living:
                log.warning("a server is lost; its requests go to the other %d: %s", len(self._living), error)
                return
            if self._restarted is None or self._allowed <= 0:
                self._failed = error if isinstance(error, ServerError) else ServerError(str(error))
                raise self._failed from error
            self._allowed -= 1
            log.warning("the last server is lost and is started again: %s", error)
            self._failed = ServerError(f"the last server could not be started again after it was lost: {error}")
            new = self._restarted(server)
            self._failed = None
            self._living = [new]
            self._lanes[new] = threading.Lock()

    def quarantined(self) -> None:
        """A request that kills servers was found: what it cost is not held against the others."""
        with self._lock:
            self._allowed += 2

    def suspect_lane(self, server: Server) -> threading.Lock:
        """Held by the one suspect request that a server works on: its next death then has one suspect."""
        with self._lock:
            return self._lanes[server]

    def stop(self) -> None:
        """End all servers that we started."""
        with self._lock:
            for server in self._living:
                server.stop()
            self._living = []
            self._failed = ServerError("the servers were stopped")


class Queue:
    """The ids of the requests still to be asked, in groups."""

    def __init__(self, groups: Iterable[Iterable[str]]) -> None:
        self._groups = deque(found for group in groups if (found := deque(group)))
        self._own: dict[object, deque[str]] = {}

    def take(self, server: object) -> str | None:
        """The next request for a server: of its own group, of the next group, of the largest rest; None: all taken."""
        group = self._own.get(server)
        if not group and self._groups:
            group = self._own[server] = self._groups.popleft()
        if not group:
            group = max(self._own.values(), key=len, default=None)
        return group.popleft() if group else None

    def lost(self, server: object) -> None:
        """The rest of a dead server's group is the next group."""
        if rest := self._own.pop(server, None):
            self._groups.appendleft(rest)


async def complete_on(
    pool: Pool,
    groups: Iterable[Sequence[str]],
    request: Callable[[str], Request],
    sampling: Sampling,
    *,
    max_in_flight: int,
    on_result: Callable[[Request, list[Completion]], None],
    on_quarantine: Callable[[Request, str], None],
) -> None:
    """Sample for every request of `groups`, `max_in_flight` at a time on each living server of the pool.

    `request` makes a request of its id when its turn has come. Each finished request is handed to `on_result`. A
    request that was under way when a server died is a suspect: it is asked again with no other suspect beside it, and
    when the server dies then too, it goes to `on_quarantine` with the reason. One call of either at a time.

    Raises:
        infra.serving.vllm_server.ServerError: no server is left.
        infra.serving.completions.CompletionError: a request was refused, or kept failing on a server that lives.
            Whatever `on_result` and `on_quarantine` raise ends the run as well.
    """
    await _Dealing(pool, groups, request, sampling, max_in_flight, on_result, on_quarantine).run()


class _Dealing:
    """One call of `complete_on`."""

    def __init__(
        self,
        pool: Pool,
        groups: Iterable[Sequence[str]],
        request: Callable[[str], Request],
        sampling: Sampling,
        max_in_flight: int,
        on_result: Callable[[Request, list[Completion]], None],
        on_quarantine: Callable[[Request, str], None],
    ) -> None:
        found = [list(group) for group in groups]
        self.pool, self.request, self.sampling, self.max_in_flight = pool, request, sampling, max_in_flight
        self.on_result, self.on_quarantine = on_result, on_quarantine
        self.queue = Queue(found)
        self.suspects: deque[str] = deque()
        self.under_way: Counter[Server] = Counter()
        self.left = sum(map(len, found))
        self.changed = asyncio.Event()  # a server died, or all is done
        self.clients: list[httpx.AsyncClient] = []

    async def run(self) -> None:
        staffed: list[Server] = []
        try:
            async with asyncio.TaskGroup() as group:
                while self.left:
                    for server in self.pool.living():
                        if server not in staffed:
                            staffed.append(server)
                            client = http_client(server.url, self.max_in_flight, server.headers)
                            self.clients.append(client)
                            for _ in range(self.max_in_flight):
                                group.create_task(self.worker(server, client))
                    refuse_when_ending()
                    try:
                        async with asyncio.timeout(1.0):
                            await self.changed.wait()
                    except TimeoutError:  # look again
                        pass
                    if self.left:
                        self.changed.clear()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            for client in self.clients:
                await client.aclose()

    async def worker(self, server: Server, client: httpx.AsyncClient) -> None:
        """Ask one request after the other on a server, until all are done or the server is dead."""
        ask, lane = sampler(server.served_name, self.sampling, server.check), self.pool.suspect_lane(server)
        while self.left and self.pool.holds(server):
            try:
                server.check()
            except ServerError as error:
                await self.dead(server, error)
                return
            alone = self.under_way[server] == 0
            suspected = bool(self.suspects) and alone and lane.acquire(blocking=False)
            taken = (
                self.suspects.popleft()
                if suspected
                else None
                if self.suspects or lane.locked()
                else self.queue.take(server)
            )
            if taken is None:  # what is left is under way, or waits for a suspect, which is asked alone
                await asyncio.sleep(_POLL_S)
                continue
            asked = self.request(taken)
            self.under_way[server] += 1
            try:
                answer = await ask(client, asked)
            except (ServerError, UnreachableError) as error:
                if suspected:
                    self.on_quarantine(asked, f"killed a server twice: {str(error)[:500]}")
                    self.pool.quarantined()
                    self.done()
                else:
                    self.suspects.append(taken)
                await self.dead(server, error)
                return
            finally:
                self.under_way[server] -= 1
                if suspected:
                    lane.release()
            self.on_result(asked, answer)
            self.done()

    def done(self) -> None:
        self.left -= 1
        if not self.left:
            self.changed.set()

    async def dead(self, server: Server, error: Exception) -> None:
        self.queue.lost(server)
        await asyncio.to_thread(self.pool.lost, server, error)  # a restart takes a while; the other servers go on
        self.changed.set()
