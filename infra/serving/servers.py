"""The models being served: at most one of each role at a time, started on first use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, SecretStr, model_validator

from infra.serving.pool import Pool, Server
from infra.serving.remote_server import MisfitError, RemoteServer
from infra.serving.vllm_server import ServerError, ServerOptions, VllmServer
from infra.store.manifest import Ref
from infra.store.models import IMPORTED, fetch_model
from infra.store.store import Store

log = logging.getLogger(__name__)

Role = Literal["policy", "reward", "judge"]


class ServingConfig(BaseModel, frozen=True, extra="forbid"):
    """How models are served."""

    policy: ServerOptions = Field(description="vLLM options of the policy, for each of its servers.")
    reward: ServerOptions = Field(description="vLLM options of the reward model.")
    share_devices: bool = Field(
        True,
        description="Policy, reward model and trainer take turns on the same devices. Set to false if all of them fit "
        "at once: the reward model's server then stays up, which saves one server start per stage.",
    )
    policy_servers: int = Field(1, ge=1, description="Number of servers of the policy to start.")
    policy_devices: tuple[str, ...] = Field(
        (),
        description="GPUs of each of these servers, as in CUDA_VISIBLE_DEVICES (`0,1`, `2,3`); if empty, all see all.",
    )
    policy_urls: tuple[str, ...] = Field(
        (),
        description="URLs of running vLLM servers that serve the flow's model; then no server is started for it.",
    )
    policy_name: str | None = Field(
        None, description="The model's name at `policy_urls`, as listed by their /v1/models."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.policy_devices and len(self.policy_devices) != self.policy_servers:
            raise ValueError(
                f"policy_devices has the GPUs of {len(self.policy_devices)} servers, but policy_servers is "
                f"{self.policy_servers}: give one entry per server, or none"
            )
        if bool(self.policy_urls) != (self.policy_name is not None):
            raise ValueError("policy_urls and policy_name go together: give both or neither")
        return self


class Servers:
    """The vLLM servers of one flow run. Leaving the context ends all servers that were started here.

    A server is started by the first step that needs its model, so a run whose steps are all cached starts none.
    """

    def __init__(self, config: ServingConfig, store: Store, work_dir: Path, api_key: SecretStr | None = None) -> None:
        """`api_key` is the API key of the servers at `policy_urls`."""
        self.work_dir = work_dir
        self._serving = config
        self._store = store
        self._api_key = api_key
        self._lock = threading.Lock()
        self._live: dict[str, tuple[Ref, Pool]] = {}
        self._remote_digest: str | None = None  # digest of the one model that policy_urls can serve

    def policies(self, model: Ref) -> Pool:
        """The servers of a policy.

        Raises:
            infra.serving.vllm_server.ServerError: a server does not start, or no remote server can be reached.
            infra.serving.remote_server.MisfitError: a remote server does not match the settings.
        """
        with self._lock:
            if self.is_remote(model):
                return self._remote(model)
            return self._pool("policy", model)

    def devices(self) -> int:
        """Number of GPUs that the policy's servers use; a remote server counts as one."""
        serving = self._serving
        own = serving.policy.tensor_parallel_size * serving.policy.pipeline_parallel_size
        return len(serving.policy_urls) or serving.policy_servers * own

    def is_remote(self, model: Ref) -> bool:
        """Whether servers that someone else runs serve this model as policy. They serve no model that is made here."""
        return bool(self._serving.policy_urls) and model.step == IMPORTED

    def generation(self, model: Ref) -> Server:
        """One server of a policy, for a step that needs only one. Raises as `policies`."""
        return self.policies(model).living()[0]

    def judges(self, model: Ref) -> Pool:
        """The server of a generative reward model, with the options of `reward`. Raises as `policies`."""
        with self._lock:
            return self._pool("judge", model)

    def reward(self, model: Ref) -> Server:
        """The server of a sequence-classification reward model. Raises as `policies`."""
        with self._lock:
            server = self._pool("reward", model).living()[0]
            server.check()
            return server

    def scorer(self) -> ServerOptions:
        """Free the devices for a reward model that runs in its own process (ArmoRM). Returns the model's options."""
        with self._lock:
            for role in list(self._live) if self._serving.share_devices else []:
                self._stop(role)
        return self._serving.reward

    def options(self, role: Role) -> ServerOptions:
        """How a model is served in a role."""
        return self._serving.policy if role == "policy" else self._serving.reward

    def engine(self, role: Role) -> str:
        """The serving options that can change a server's answers, as JSON: an ingredient of cache keys.

        The layout of the work (servers, URLs, `tensor_parallel_size`, `max_num_seqs`, memory) is not included: it
        changes the last bits of a logit, as another GPU would, but not the distribution that is sampled from. Besides,
        a run may move to another machine halfway. An open `dtype` is settled by each machine for itself.
        """
        kept = {"dtype", "max_model_len", "seed", "extra_args", "trust_remote_code"}
        return self.options(role).model_dump_json(include=kept)

    def release(self) -> None:
        """Free the devices for a trainer: end all servers if devices are shared, else the policy's and those of a
        generative reward model, which is trained in turn with it."""
        own: list[Role] = ["policy", "judge"]
        with self._lock:
            for role in list(self._live) if self._serving.share_devices else own:
                self._stop(role)

    def _pool(self, role: Role, model: Ref) -> Pool:
        if role in self._live:
            held, pool = self._live[role]
            if held.digest == model.digest:
                return pool
        for other in list(self._live) if self._serving.share_devices else [role]:
            self._stop(other)
        start = partial(self._start, role, model, fetch_model(self._store, model, self.work_dir))
        started = _start_all(start, self._serving.policy_servers if role == "policy" else 1)
        numbers: dict[Server, int] = {server: number for number, server in enumerate(started)}

        def restart(dead: Server) -> VllmServer:
            new = start(numbers[dead])
            numbers[new] = numbers.pop(dead)
            return new

        pool = Pool(started, None if role == "reward" else restart)
        self._live[role] = (model, pool)
        return pool

    def _start(self, role: Role, model: Ref, folder: Path, number: int) -> VllmServer:
        """Start server `number` of the model in `folder`, counted from 0."""
        is_policy, name = role == "policy", f"{role}-{model.step}-{model.key}"
        devices = self._serving.policy_devices if is_policy else ()
        server = VllmServer(
            folder,
            self.options(role),
            log_path=self.work_dir / "logs" / (f"{name}-{number}.log" if number else f"{name}.log"),
            runner="pooling" if role == "reward" else "generate",
            served_name=role,
            devices=devices[number] if devices else None,
        )
        server.start()
        return server

    def _remote(self, model: Ref) -> Pool:
        """The servers at `policy_urls`; those that are reachable again are added back."""
        if self._remote_digest not in (None, model.digest):
            raise MisfitError(
                f"serving.policy_urls serve one model, but this run needs {model.step}/{model.key} after another one: "
                "run it without policy_urls, or run one flow per model"
            )
        assert self._serving.policy_name is not None
        name, length = self._serving.policy_name, self._serving.policy.max_model_len
        _, pool = self._live.get("remote", (model, Pool([])))
        if pool.failed():  # all were unreachable: try again
            pool = Pool([])
        known = {server.url for server in pool.living()}
        for url in self._serving.policy_urls:
            server = RemoteServer(url, name, self._api_key)
            if server.url in known:
                continue
            if server.reachable(length):
                log.info("%s serves %s", server.url, name)
                pool.add(server)
            else:
                log.warning("%s cannot be reached; its requests go to the others", server.url)
        if not pool.living():
            raise ServerError(f"none of serving.policy_urls can be reached: {', '.join(self._serving.policy_urls)}")
        self._live["remote"], self._remote_digest = (model, pool), model.digest
        return pool

    def _stop(self, role: str) -> None:
        held = self._live.pop(role, None)
        if held is not None:
            held[1].stop()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for role in list(self._live):
                self._stop(role)


def _start_all(start: Callable[[int], VllmServer], count: int) -> list[VllmServer]:
    """Start servers 0 to `count` - 1 in parallel. If one fails, end the others and raise its error."""
    with ThreadPoolExecutor(count) as starting:
        starts = [starting.submit(start, number) for number in range(count)]
    failed = [error for each in starts if (error := each.exception())]
    started = [each.result() for each in starts if not each.exception()]
    if failed:
        for server in started:
            server.stop()
        raise failed[0]
    return started
