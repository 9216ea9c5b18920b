"""The vLLM servers of a run on a Ray cluster: an actor for each, and one actor, the fleet, that knows them all.

The fleet lives on the flow's machine and ends with the flow; with it, every server ends. Shards on any node ask it for
servers. It checks the servers every `CHECK_S` seconds and replaces those that died. Requests go straight to a server.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray
from pydantic import SecretStr
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infra.cluster.config import RayConfig, Resources
from infra.serving.servers import Role, ServingConfig
from infra.serving.vllm_server import ServerError, ServerOptions, VllmServer, runs_on_cpu
from infra.settings import Settings
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.store import Store

log = logging.getLogger(__name__)

CHECK_S = 2.0
LOCK_S = 60.0
"""Seconds without a word from the holder of a server's lock after which it counts as dead."""


@dataclass(frozen=True)
class Address:
    """Where a server can be reached from any node."""

    url: str
    served_name: str
    api_key: SecretStr


@ray.remote(num_cpus=0, max_restarts=0, max_concurrency=2)
class ServerActor:
    """One vLLM server on the node where Ray has placed this actor."""

    def __init__(self, settings: Settings, role: Role, options: ServerOptions, api_key: SecretStr) -> None:
        if options.pipeline_parallel_size > 1:  # vLLM spreads it over nodes through this Ray cluster
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides all GPUs from an actor that takes none itself
            more = (*options.extra_args, "--distributed-executor-backend", "ray")
            options = options.model_copy(update={"extra_args": more})
        self._settings, self._role, self._options, self._api_key = settings, role, options, api_key
        self._server: VllmServer | None = None

    def start(self, model: Ref, number: int) -> Address:
        """Fetch the model to this node, serve it, and wait until the server is healthy. Raises `ServerError`."""
        work_dir = self._settings.work_dir
        folder = fetch_model(Store.open(self._settings), model, work_dir)
        self._server = VllmServer(
            folder,
            self._options,
            log_path=work_dir / "logs" / f"{self._role}-{model.step}-{model.key}-{number}.log",
            runner="pooling" if self._role == "reward" else "generate",
            served_name=self._role,
            host=ray.util.get_node_ip_address(),
            api_key=self._api_key,
        )
        self._server.start()
        return Address(self._server.url, self._role, self._api_key)

    def check(self) -> None:
        """Raise `ServerError` if the server is not running."""
        if self._server is not None:
            self._server.check()

    def stop(self) -> None:
        """End the server and wait until its devices are free."""
        if self._server is not None:
            self._server.stop()


@dataclass
class Group:
    """The servers of one model in one role."""

    model: Ref
    restarts_left: int
    living: dict[str, tuple[Address, Any]] = field(default_factory=dict)  # by URL, with the actor
    dead: dict[str, ServerError] = field(default_factory=dict)  # by URL
    starting: int = 0
    count: int = 0
    failed: str = ""
    served: bool = False  # whether one ever lived
    ended: bool = False
    actors: dict[Any, str] = field(default_factory=dict)  # with the node that each was meant for, if one was


class Fleet:
    """The servers of all roles. All methods may be called from any thread; those that wait block only their caller."""

    def __init__(self, serving: ServingConfig, config: RayConfig, settings: Settings) -> None:
        self._serving, self._config, self._settings = serving, config, settings
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # one role after another starts and ends servers
        self._groups: dict[Role, Group] = {}
        self._locks: dict[str, tuple[str, float]] = {}  # by URL: holder, time of its last word
        threading.Thread(target=self._watch, daemon=True, name="fleet").start()

    def serve(self, role: Role, model: Ref) -> list[Address]:
        """The living servers of a model. The first call starts them; it returns as soon as one is healthy.

        With `share_devices`, the servers of other roles are ended first.

        Raises:
            ServerError: none can be started, or none is left and `restarts` is used up.
        """
        with self._turn:
            held = self._groups.get(role)
            if held is None or held.model.digest != model.digest:
                for other in list(self._groups) if self._serving.share_devices else [role]:
                    self._stop(other)
                group = Group(model, self._config.restarts)
                with self._changed:
                    self._groups[role] = group
                for _ in range(self._serving.policy_servers if role == "policy" else 1):
                    self._begin(role, group)
        return self.living(role, model)

    def living(self, role: Role, model: Ref) -> list[Address]:
        """The living servers; waits until there is one. Raises `ServerError` as `serve`."""
        with self._changed:
            while True:
                group = self._groups.get(role)
                if group is None or group.model.digest != model.digest:
                    raise ServerError(f"the servers of {model.step}/{model.key} were stopped")
                if group.living:
                    return [address for address, _ in group.living.values()]
                if group.failed and not group.starting:
                    raise ServerError(group.failed)
                self._changed.wait(1.0)

    def check(self, role: Role, url: str) -> None:
        """Raise `ServerError` with what ended a server if it is not up; its process is asked."""
        with self._changed:
            group = self._groups.get(role)
            found = group.living.get(url) if group else None
        if group and found:
            self._check(role, group, url, found[1])
        with self._changed:
            if group is None or url not in group.living:
                known = group.dead.get(url) if group else None
                raise known or ServerError(f"the server at {url} is dead")

    def lost(self, role: Role, url: str, why: str) -> None:
        """Requests did not reach a server, for the reason `why`: end and replace it, unless that was done already."""
        with self._changed:
            group = self._groups.get(role)
            found = group.living.get(url) if group else None
        if group and found:
            self._check(role, group, url, found[1])  # what ended it says more than what requests saw
            self._drop(role, group, url, ServerError(why))

    def allow(self, role: Role, restarts: int) -> None:
        """Allow for the servers that a suspect cost: they do not count for other requests."""
        with self._changed:
            if group := self._groups.get(role):
                group.restarts_left += restarts

    def hold(self, url: str, holder: str) -> bool:
        """Take a server's lock for a suspect (`infra.serving.schedule`), or show that its holder still lives."""
        with self._changed:
            other, said = self._locks.get(url, (holder, 0.0))
            if other != holder and time.monotonic() - said < LOCK_S:
                return False
            self._locks[url] = (holder, time.monotonic())
            return True

    def let_go(self, url: str, holder: str) -> None:
        """Give a server's lock back."""
        with self._changed:
            if self._locks.get(url, ("", 0.0))[0] == holder:
                del self._locks[url]

    def held(self, url: str) -> bool:
        """Whether a suspect has a server's lock."""
        with self._changed:
            return time.monotonic() - self._locks.get(url, ("", -LOCK_S))[1] < LOCK_S

    def stop(self, roles: list[Role] | None = None) -> None:
        """End the servers of these roles, or of all, and wait until their devices are free."""
        with self._turn:
            for role in list(self._groups) if roles is None else roles:
                self._stop(role)

    def _stop(self, role: Role) -> None:
        with self._changed:
            group = self._groups.pop(role, None)
            if group is None:
                return
            group.ended = True
            actors = list(group.actors)
            self._changed.notify_all()
        for actor in actors:
            _end(actor)

    def _begin(self, role: Role, group: Group) -> None:
        """Start one more server of a group in a thread of its own."""
        with self._changed:
            number, group.count, group.starting = group.count, group.count + 1, group.starting + 1
        threading.Thread(target=self._start, args=(role, group, number), daemon=True, name=f"{role}-{number}").start()

    def _start(self, role: Role, group: Group, number: int) -> None:
        options = self._serving.policy if role == "policy" else self._serving.reward
        needed, actor = server_needs(options, self._config.server), None
        try:
            with self._changed:
                place = self._place(group, needed, options)
                actor = ServerActor.options(**needed, scheduling_strategy=place).remote(  # type: ignore[attr-defined]
                    self._settings, role, options, SecretStr(secrets.token_urlsafe(24))
                )
                group.actors[actor] = getattr(place, "node_id", "")
            self._await_room(actor, needed)
            address = ray.get(actor.start.remote(group.model, number))
        except (RayError, RuntimeError, OSError, ValueError) as error:
            death = _death(error)
            self._gone(role, group, actor, str(death), again=death.killed or group.served)
            return
        with self._changed:
            group.starting -= 1
            if not group.ended:
                group.living[address.url], group.failed, group.served = (address, actor), "", True
            self._changed.notify_all()
        log.info("%s serves %s/%s (%s %d)", address.url, group.model.step, group.model.key, role, number)
        if group.ended:
            _end(actor)

    def _place(self, group: Group, needed: dict[str, Any], options: ServerOptions) -> Any:
        """Where Ray puts a server: spread over the nodes with room. Ray counts none that takes nothing of its node.

        Such are those on a CPU, and those that vLLM spreads over nodes: they must start on one that has GPUs.
        """
        if any(needed.values()):
            return "SPREAD"
        gpus, held = 0 if runs_on_cpu() else options.tensor_parallel_size, Counter(group.actors.values())
        fit = [node["NodeID"] for node in living_nodes() if node["Resources"].get("GPU", 0) >= gpus]
        if not fit:
            raise ServerError(f"no node has the {gpus} GPUs of serving.policy.tensor_parallel_size")
        return NodeAffinitySchedulingStrategy(min(fit, key=lambda node: held[node]), soft=False)

    def _await_room(self, actor: Any, needed: dict[str, Any]) -> None:
        try:
            ray.get(actor.check.remote(), timeout=self._config.wait_s)
        except GetTimeoutError:
            raise ServerError(
                f"no node had room for a server that needs {needed} within {self._config.wait_s:g} s; the cluster has "
                f"{ray.cluster_resources()}: add nodes, start fewer servers, or correct serving and ray.server"
            ) from None

    def _gone(self, role: Role, group: Group, actor: Any, why: str, *, again: bool) -> None:
        """A server did not start. `again`: another may, since it was killed, its node was lost, or others did start."""
        if actor is not None:
            ray.kill(actor)
        with self._changed:
            group.actors.pop(actor, None)
            group.starting -= 1
            group.failed = why
            if again and group.restarts_left > 0 and not group.ended:
                group.restarts_left -= 1
                self._begin(role, group)
            self._changed.notify_all()
        if not group.ended:
            log.warning("a %s server of %s/%s did not start: %s", role, group.model.step, group.model.key, why)

    def _watch(self) -> None:
        while True:
            time.sleep(CHECK_S)
            with self._changed:
                known = [
                    (role, group, url, actor)
                    for role, group in self._groups.items()
                    for url, (_, actor) in group.living.items()
                ]
            for role, group, url, actor in known:
                self._check(role, group, url, actor)

    def _check(self, role: Role, group: Group, url: str, actor: Any) -> None:
        """Drop and replace a server that does not run. One that does not answer in time is left alone."""
        try:
            ray.get(actor.check.remote(), timeout=10)
        except GetTimeoutError:
            log.debug("%s does not say whether it runs", url)
        except (RayError, ServerError) as error:
            self._drop(role, group, url, _death(error))

    def _drop(self, role: Role, group: Group, url: str, why: ServerError) -> None:
        with self._changed:
            found = group.living.pop(url, None)
            if found is None or group.ended:
                return
            group.dead[url] = why
            group.actors.pop(found[1], None)
            group.restarts_left -= 1
            replaced = group.restarts_left >= 0
            if not replaced:
                group.failed = f"the last of {group.count} servers is lost, and ray.restarts is used up: {why}"
                self._changed.notify_all()
            else:
                self._begin(role, group)
        log.warning("%s is lost%s: %s", url, " and is replaced" if replaced else "", why)
        _end(found[1])


def _death(error: Exception) -> ServerError:
    """What ended a server, of the error of its actor. An actor that is gone was killed, or its node was lost."""
    cause = getattr(error, "cause", None) or error
    death = ServerError(str(cause))
    death.killed = isinstance(error, RayActorError) or getattr(cause, "killed", False)
    return death


def server_needs(options: ServerOptions, more: Resources) -> dict[str, Any]:
    """Ray's options for the actor of a server.

    A server over several nodes (`pipeline_parallel_size`) takes its GPUs through vLLM's own use of Ray.
    """
    alone = options.pipeline_parallel_size == 1
    return {"num_cpus": 0, **ray_options(more, gpus=0 if runs_on_cpu() or not alone else options.tensor_parallel_size)}


def ray_options(resources: Resources, gpus: float = 0) -> dict[str, Any]:
    """Resources as Ray's options; `gpus` are added to those that the resources name."""
    named = {"CPU": "num_cpus", "GPU": "num_gpus"}
    found: dict[str, Any] = {named[name]: amount for name, amount in resources.items() if name in named}
    if own := {name: amount for name, amount in resources.items() if name not in named}:
        found["resources"] = own
    return found | ({"num_gpus": found.get("num_gpus", 0) + gpus} if gpus else {})


def living_nodes() -> list[dict[str, Any]]:
    """The cluster's nodes that are up, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _end(actor: Any) -> None:
    """End a server and its actor. The process of a killed actor takes its server with it."""
    try:
        ray.get(actor.stop.remote(), timeout=30)
    except (RayError, GetTimeoutError):
        log.debug("an actor did not stop in time, or is dead; it is killed")
    ray.kill(actor)


FleetActor = ray.remote(num_cpus=0, max_concurrency=32)(Fleet)
