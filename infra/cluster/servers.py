"""The servers of a run on a Ray cluster, as a step sees them, on whatever node it runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import ray
from pydantic import SecretStr
from ray.exceptions import RayError, RayTaskError

from infra.cluster.fleet import Address
from infra.proxies import spare
from infra.serving.pool import Pool, Server
from infra.serving.servers import Role, Servers, ServingConfig
from infra.serving.vllm_server import ServerError, ServerOptions
from infra.store.manifest import Ref

log = logging.getLogger(__name__)

REFRESH_S = 1.0
"""A step asks the fleet that often, at most, which servers live."""


def asked(call: Any) -> Any:
    """The fleet's answer to a call. Raises `ServerError` as the fleet does, or if the fleet is gone."""
    try:
        return ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, ServerError):
            raise error.cause from None
        raise
    except RayError as error:
        raise ServerError(f"the run's fleet of servers is gone: {error}") from error


class NodeServer:
    """A vLLM server on some node, as a step reaches it. It is ended and replaced by the fleet."""

    def __init__(self, address: Address, fleet: Any, role: Role) -> None:
        self.url, self.served_name = address.url, address.served_name
        self._key, self._fleet, self._role = address.api_key, fleet, role
        self._checked, self._lock = time.monotonic(), threading.Lock()
        spare(self.url)

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers of every request; they hold the API key, so they are never logged."""
        return {"Authorization": f"Bearer {self._key.get_secret_value()}"}

    def check(self) -> None:
        """Raise `ServerError` with what ended the server if it is dead. The fleet is asked once a second at most."""
        with self._lock:
            if time.monotonic() - self._checked < REFRESH_S:
                return
            self._checked = time.monotonic()
        asked(self._fleet.check.remote(self._role, self.url))

    def stop(self) -> None:
        """Do nothing: the fleet ends it."""


class SuspectLock:
    """A server's lock for a suspect (`infra.serving.schedule.Schedule`), shared by the steps of all nodes."""

    def __init__(self, fleet: Any, url: str) -> None:
        self._fleet, self._url, self._me = fleet, url, uuid4().hex
        self._held = self._seen = False
        self._asked = 0.0

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock if it is free. It is never waited for: `blocking` must be False."""
        assert not blocking
        if self._held:
            return False
        self._held = asked(self._fleet.hold.remote(self._url, self._me))
        return self._held

    def locked(self) -> bool:
        """Whether a suspect of any process holds the lock, as of a second ago. Shows that ours still does."""
        if time.monotonic() - self._asked > REFRESH_S:
            self._asked = time.monotonic()
            if self._held:
                asked(self._fleet.hold.remote(self._url, self._me))
            else:
                self._seen = asked(self._fleet.held.remote(self._url))
        return self._held or self._seen

    def release(self) -> None:
        """Give the lock back."""
        self._held = self._seen = False
        asked(self._fleet.let_go.remote(self._url, self._me))


class ClusterPool(Pool):
    """The servers of one model, as one process sees them. Those that come later are used as soon as they live."""

    def __init__(self, fleet: Any, role: Role, model: Ref) -> None:
        """Start the servers if they do not run yet, and wait until one lives. Raises `ServerError`."""
        super().__init__([])
        self._fleet, self._role, self._model = fleet, role, model
        self._known: dict[Address, Server] = {}
        self._locks: dict[str, SuspectLock] = {}
        self._take(asked(fleet.serve.remote(role, model)))

    def _take(self, addresses: list[Address]) -> None:
        with self._lock:
            before = {each.url for each in self._living}
            for each in addresses:
                if each not in self._known:
                    self._known[each] = NodeServer(each, self._fleet, self._role)
            self._living = [self._known[each] for each in addresses]
            self._fresh, now = time.monotonic(), {each.url for each in addresses}
        if before != now:
            gone, new = ", ".join(before - now) or "none", ", ".join(now - before) or "none"
            log.log(
                logging.WARNING if before - now else logging.INFO, "%s servers: lost %s, new %s", self._role, gone, new
            )

    def living(self) -> list[Server]:
        """The servers that are up; waits until there is one. Raises `ServerError` if none is left."""
        if not self._living or time.monotonic() - self._fresh > REFRESH_S:
            self._take(asked(self._fleet.living.remote(self._role, self._model)))
        return super().living()

    def lost(self, server: Server, error: Exception) -> None:
        """Have a dead server replaced, and wait until one lives. Raises `ServerError` if none is left."""
        asked(self._fleet.lost.remote(self._role, server.url, str(error)))
        self._take(asked(self._fleet.living.remote(self._role, self._model)))

    def allow(self, restarts: int) -> None:
        """Allow for the servers that a suspect cost."""
        asked(self._fleet.allow.remote(self._role, restarts))

    def suspect_lock(self, server: Server) -> Any:
        """The lock that a suspect of any process holds while it is on a server."""
        with self._lock:
            return self._locks.setdefault(server.url, SuspectLock(self._fleet, server.url))

    def stop(self) -> None:
        """Do nothing: the fleet ends the servers."""


class ClusterServers(Servers):
    """`Servers` of which steps on all nodes have a copy, and which one fleet starts and ends."""

    def __init__(self, config: ServingConfig, fleet: Any, work_dir: Path, api_key: SecretStr | None = None) -> None:
        """`api_key` is the API key of the servers at `policy_urls`."""
        super().__init__(config, None, work_dir, api_key)  # type: ignore[arg-type]  # the fleet's actors read the store
        self._fleet = fleet

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        return type(self), (self._serving, self._fleet, self.work_dir, self._api_key)

    def _pool(self, role: Role, model: Ref) -> Pool:
        return ClusterPool(self._fleet, role, model)

    def scorer(self) -> ServerOptions:
        """Free the devices for a reward model that runs in its own process (ArmoRM). Returns the model's options."""
        if self._serving.share_devices:
            self._end()
        return self._serving.reward

    def release(self) -> None:
        """Free the devices for a trainer: end all servers if devices are shared, else the policy's and the judge's."""
        self._end(None if self._serving.share_devices else ["policy", "judge"])

    def _end(self, roles: list[Role] | None = None) -> None:
        asked(self._fleet.stop.remote(roles))

    def __exit__(self, *_: object) -> None:
        with suppress(ServerError):  # the cluster is gone, and the servers with it
            self._end()
