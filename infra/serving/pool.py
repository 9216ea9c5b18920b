"""Spreads a step's requests over the servers of one model; the requests of a server that dies go to the others.

Requests come in groups that share a prompt prefix. The next request goes to the server with the fewest in flight, those
of all shards counted. It is one of the group that this server works through, so that a group stays on one server, whose
prefix cache holds its prefix (`infra.serving.schedule`). When no whole group is left, a server helps with the largest
rest of another server's.

A request that was in flight when a server died may have killed it. Such a suspect is sent again, alone. If the server
then crashes too, the suspect is quarantined. A server that was killed is weak evidence: most likely, someone ended it,
or its machine was lost. Then the suspect is sent again, up to `KILLS` times. A request that the server refuses is
quarantined at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Protocol

from infra.processes.causes import cause
from infra.processes.watchdog import refuse_when_ending
from infra.serving.completions import (
    Client,
    Completion,
    RefusedError,
    Request,
    Sampling,
    UnreachableError,
    sample_together,
)
from infra.serving.schedule import Queue, Schedule, Turn, packed
from infra.serving.vllm_server import ServerError

log = logging.getLogger(__name__)

RESTARTS = 2  # of the last server while a model is served; those that suspects cost do not count
KILLS = 5  # servers that are killed while a suspect is alone on them, before the suspect is taken for the cause
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

    def __init__(self, servers: Sequence[Server], restart: Callable[[Server], Server] | None = None) -> None:
        """`restart` replaces the last server after it died, and returns the new one; if omitted, none is restarted."""
        self._lock = threading.Lock()
        self._living = list(servers)
        self._restart = restart
        self._restarts_left = RESTARTS
        self._failed: ServerError | None = None
        self._suspect_locks: defaultdict[Server, threading.Lock] = defaultdict(threading.Lock)
        self._in_flight: Counter[Server] = Counter()

    def living(self) -> list[Server]:
        """The servers that are up, as far as is known. Raises `ServerError` if none is left."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            return list(self._living)

    def failed(self) -> bool:
        """Whether no server is left and none could be restarted."""
        with self._lock:
            return self._failed is not None

    def holds(self, server: Server) -> bool:
        """Whether a server is up, as far as is known."""
        with self._lock:
            return server in self._living

    def add(self, server: Server) -> None:
        """Add a server that has come up, or has come back up."""
        with self._lock:
            self._living.append(server)

    def lost(self, server: Server, error: Exception) -> None:
        """Remove a dead server. If it was the last one, restart it and block until it is up.

        Raises:
            ServerError: no server is left, and none can be restarted or `RESTARTS` restarts are used up.
        """
        with self._lock:
            if server not in self._living:  # already reported
                return
            self._living.remove(server)
            server.stop()
            if self._living:
                log.warning("a server is lost; its requests go to the other %d: %s", len(self._living), error)
                return
            if self._restart is None or self._restarts_left <= 0:
                self._failed = error if isinstance(error, ServerError) else ServerError(str(error))
                raise self._failed from error
            self._restarts_left -= 1
            log.warning("the last server is lost and is started again: %s", error)
            self._failed = ServerError(f"the last server could not be started again after it was lost: {error}")
            new = self._restart(server)
            self._failed = None
            self._living = [new]

    def allow(self, restarts: int) -> None:
        """Allow for the restarts that a suspect cost: they do not count for the others."""
        with self._lock:
            self._restarts_left += restarts

    def least_busy(self, servers: Iterable[Server]) -> list[Server]:
        """The servers in ascending order of their requests in flight; among equals, those named first."""
        with self._lock:
            return sorted(servers, key=lambda server: self._in_flight[server])

    def sending(self, server: Server, count: int) -> None:
        """Count `count` more requests in flight on a server; a negative number for requests that have ended."""
        with self._lock:
            self._in_flight[server] += count

    def suspect_lock(self, server: Server) -> threading.Lock:
        """The lock that a suspect holds while it is on a server: if the server dies, there is one suspect only."""
        with self._lock:
            return self._suspect_locks[server]

    def stop(self) -> None:
        """End all servers that were started here."""
        with self._lock:
            for server in self._living:
                server.stop()
            self._living = []
            self._failed = ServerError("the servers were stopped")


async def complete_on(
    pool: Pool,
    groups: Iterable[Sequence[str]],
    request: Callable[[str], Request],
    sampling: Sampling,
    *,
    max_in_flight: int,
    on_result: Callable[[Request, list[Completion]], None],
    on_quarantine: Callable[[Request, str], None],
    together: int = 1,
) -> None:
    """Sample for every request of `groups`, with `max_in_flight` requests at a time on each living server of the pool.

    Up to `together` requests of a group travel in one HTTP request, which saves most of the cost of short ones; if it
    is refused, each is sent alone. A request that was in flight when a server died is a suspect. It is sent again with
    no other suspect beside it. It is quarantined if that server crashes, or if `KILLS` servers are killed meanwhile.

    Args:
        groups: request ids; those of a group share a prompt prefix.
        request: makes the request of an id, when its turn has come.
        on_result: gets each finished request; one call of it or of `on_quarantine` at a time.
        on_quarantine: gets each quarantined request and the reason.
        together: more than 1 only for requests without seeds.

    Raises:
        infra.serving.vllm_server.ServerError: no server is left.
        infra.serving.completions.CompletionError: a request kept failing on a server that lives, or the server refuses
            every request, since it has no such model or our key is wrong. Whatever `on_result` and `on_quarantine`
            raise ends the run as well.
    """
    together = min(together, max_in_flight)
    most = max_in_flight // together
    by_group = [packed([group], together) for group in groups]
    packs = {name: own for group in by_group for name, own in group.items()}
    unfinished = sum(map(len, packs.values()))
    requests = Requests(packs, request, lambda _: sampling, on_result, on_quarantine, unfinished)
    shard = Shard(pool, Schedule(Queue(by_group)), requests)
    try:
        await shard.serve(lambda: not requests.unfinished, max_in_flight, most)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


@dataclass
class Requests:
    """The requests of a shard, and what becomes of them."""

    packs: dict[str, list[str]]
    """Those that travel together, by the name that the schedule knows them by."""
    request: Callable[[str], Request]
    sampling: Callable[[str], Sampling]
    """How a request is sampled; the same for all of a pack."""
    on_result: Callable[[Request, list[Completion]], None]
    on_quarantine: Callable[[Request, str], None]
    unfinished: int = 0


@dataclass
class Shard:
    """The state of one shard's requests. All of it is used from one event loop."""

    pool: Pool
    schedule: Schedule
    requests: Requests
    kills: Counter[str] = field(default_factory=Counter)
    """How many servers were killed while a suspect was alone on them, by request."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """A request ended or came, or a server was lost."""

    async def serve(self, over: Callable[[], bool], max_in_flight: int, most: int) -> None:
        """Hand out requests until `over`, `most` packs of them at a time to each living server."""
        clients: dict[Server, Client] = {}
        async with AsyncExitStack() as opened, asyncio.TaskGroup() as sending:
            while not over():
                for server in self.pool.living():
                    if server not in clients:
                        clients[server] = await opened.enter_async_context(
                            Client(server.url, max_in_flight=max_in_flight, alive=server.check, headers=server.headers)
                        )
                while dealt := self.deal(clients, most):
                    server, turn = dealt
                    sending.create_task(self.send(server, clients[server], turn))
                refuse_when_ending()
                with suppress(TimeoutError):  # look again soon: another shard may have added a server, or freed one
                    async with asyncio.timeout(_POLL_S):
                        await self.changed.wait()
                self.changed.clear()

    def deal(self, servers: Iterable[Server], most: int) -> tuple[Server, Turn] | None:
        """The next request, for the least busy server that can take one; None if all have to wait.

        `most`: requests of this shard that a server may have in flight.
        """
        free = [each for each in servers if self.schedule.in_flight[each] < most and self.pool.holds(each)]
        for server in self.pool.least_busy(free):
            if turn := self.schedule.take(server, self.pool.suspect_lock(server)):
                self.pool.sending(server, 1)
                return server, turn
        return None

    async def send(self, server: Server, client: Client, turn: Turn) -> None:
        """Send the request of a turn, and give the turn back, whatever comes of it."""
        try:
            await self.ask(server, client, turn)
        finally:
            self.schedule.release(server, self.pool.suspect_lock(server), turn)
            self.pool.sending(server, -1)
            self.changed.set()

    async def ask(self, server: Server, client: Client, turn: Turn) -> None:
        """Send the requests of a turn. If the server dies, each becomes a suspect; one that was a suspect already is
        quarantined, or sent again."""
        try:
            server.check()
        except ServerError as error:  # it died before this request could reach it
            self.schedule.put_back(turn)
            await self.lost(server, error)
            return
        names = self.requests.packs.get(turn.request_id, [turn.request_id])
        requests = [self.requests.request(name) for name in names]
        sampling = self.requests.sampling(names[0])
        try:
            completions = await sample_together(client, server.served_name, requests, sampling)
        except RefusedError as error:
            if len(names) > 1:  # one of them is the cause
                for name in reversed(names):
                    self.schedule.put_back(Turn(name, suspect=False))
                return
            self.requests.on_quarantine(requests[0], f"was refused: {str(error)[:500]}")
            self.requests.unfinished -= 1
        except (ServerError, UnreachableError) as error:
            if turn.suspect and (blamed := self.blamed(names[0], error)):
                self.requests.on_quarantine(requests[0], f"{blamed}: {cause(str(error))}")
                self.requests.unfinished -= 1
            else:
                for name in names:
                    self.schedule.suspect(name)
            await self.lost(server, error)
        else:
            for request, found in zip(requests, completions, strict=True):
                self.requests.on_result(request, found)
                self.requests.unfinished -= 1

    def blamed(self, suspect: str, error: Exception) -> str:
        """Why a suspect is taken for the cause of the death of the server that it was alone on; "" if it is not."""
        self.pool.allow(1)
        reason = "killed a server twice"
        if isinstance(error, ServerError) and error.killed:
            self.kills[suspect] += 1
            if self.kills[suspect] < KILLS:
                return ""
            reason = f"was alone on a server that was killed, {KILLS} times"
        self.pool.allow(1)  # the first server that it cost
        return reason

    async def lost(self, server: Server, error: Exception) -> None:
        self.schedule.lost(server)
        await asyncio.to_thread(self.pool.lost, server, error)  # a restart takes a while; other servers work meanwhile
