"""Who is being served: at most one policy and one reward model at a time, started when first asked for."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from infra.serving.pool import Pool, Server
from infra.serving.remote_server import MisfitError, RemoteServer
from infra.serving.vllm_server import ServerError, ServerOptions, VllmServer
from infra.store.manifest import Ref
from infra.store.models import IMPORTED, fetch_model
from infra.store.store import Store

log = logging.getLogger(__name__)


class ServingConfig(BaseModel):
    """How models are served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: ServerOptions = Field(description="vLLM options of the model that generates, for each of its servers.")
    reward: ServerOptions = Field(description="vLLM options of the reward model.")
    share_devices: bool = Field(
        True,
        description="Policy, reward model and trainer take turns on the same devices. False is for machines where all "
        "of them fit at once: the reward model's server stays up beside the others, which saves a start a stage.",
    )
    policy_servers: int = Field(1, ge=1, description="Servers of the policy that are started here.")
    policy_devices: tuple[str, ...] = Field(
        (),
        description="GPUs of each of these servers, as in CUDA_VISIBLE_DEVICES (`0,1`, `2,3`); none: all see all.",
    )
    policy_urls: tuple[str, ...] = Field(
        (),
        description="vLLM servers elsewhere that serve the model given to the flow; no server is started for it then.",
    )
    policy_name: str | None = Field(
        None, description="The model's name at `policy_urls`, as their /v1/models tells it."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.policy_devices and len(self.policy_devices) != self.policy_servers:
            raise ValueError(
                f"policy_devices names GPUs for {len(self.policy_devices)} servers, policy_servers is "
                f"{self.policy_servers}: give an entry a server, or none"
            )
        if self.policy_servers > 1 and self.policy.tensor_parallel_size > 1 and not self.policy_devices:
            raise ValueError("several servers of several GPUs each: say in policy_devices which GPUs each one has")
        if bool(self.policy_urls) != (self.policy_name is not None):
            raise ValueError("policy_urls and policy_name go together: give both or neither")
        return self


class Servers:
    """The vLLM servers of one flow run. Leaving the context ends all that were started here.

    A server is started by the first step that asks for its model: a run whose steps are all cached starts none.
    """

    def __init__(self, config: ServingConfig, store: Store, work_dir: Path, api_key: SecretStr | None = None) -> None:
        """`api_key` is that of the servers at `policy_urls`."""
        self.work_dir = work_dir
        self._serving = config
        self._store = store
        self._api_key = api_key
        self._lock = threading.Lock()
        self._live: dict[str, tuple[Ref, Pool]] = {}
        self._elsewhere: str | None = None  # digest of the one model that policy_urls can serve

    def policies(self, model: Ref) -> Pool:
        """The servers of a policy.

        Raises:
            infra.serving.vllm_server.ServerError: one does not start, or none of those elsewhere can be reached.
            infra.serving.remote_server.MisfitError: one elsewhere does not serve this model, or too short a length.
        """
        with self._lock:
            if self._serving.policy_urls and model.step == IMPORTED:
                return self._remote(model)
            return self._pool("policy", model)

    def generation(self, model: Ref) -> Server:
        """One server of a policy, for a step that needs no more. Raises as `policies`."""
        return self.policies(model).living()[0]

    def reward(self, model: Ref) -> Server:
        """The server of a sequence-classification reward model. Raises as `policies`."""
        with self._lock:
            server = self._pool("reward", model).living()[0]
            server.check()
            return server

    def scorer(self) -> ServerOptions:
        """The options of a reward model that is scored with in a process of its own, whose devices are freed."""
        with self._lock:
            for role in list(self._live) if self._serving.share_devices else []:
                self._stop(role)
        return self._serving.reward

    def engine(self, role: Literal["policy", "reward"]) -> str:
        """The serving options that can change what a server answers, as JSON: an ingredient of cache keys.

        How the work is laid out (servers, URLs, `tensor_parallel_size`, `max_num_seqs`, memory) is left out: it changes
        the last bits of a logit, as another GPU would, not what is sampled from; and a run may move to another machine
        half way.
        """
        kept = {"dtype", "max_model_len", "seed", "extra_args", "trust_remote_code"}
        return getattr(self._serving, role).model_dump_json(include=kept)  # type: ignore[no-any-return]

    def release(self) -> None:
        """Free what a trainer needs: every server where devices are shared, else the policy's."""
        with self._lock:
            for role in list(self._live) if self._serving.share_devices else ["policy"]:
                self._stop(role)

    def _pool(self, role: str, model: Ref) -> Pool:
        if role in self._live:
            held, pool = self._live[role]
            if held.digest == model.digest:
                return pool
        for other in list(self._live) if self._serving.share_devices else [role]:
            self._stop(other)
        folder = fetch_model(self._store, model, self.work_dir)
        name = f"{role}-{model.step}-{model.key}"

        devices = self._serving.policy_devices if role == "policy" else ()

        def made(number: int) -> VllmServer:
            server = VllmServer(
                folder,
                self._serving.policy if role == "policy" else self._serving.reward,
                log_path=self.work_dir / "logs" / (f"{name}-{number}.log" if number else f"{name}.log"),
                runner="generate" if role == "policy" else "pooling",
                served_name=role,
                devices=devices[number] if devices else None,
            )
            server.start()
            return server

        count = self._serving.policy_servers if role == "policy" else 1
        with ThreadPoolExecutor(count) as starting:
            starts = [starting.submit(made, number) for number in range(count)]
        failed = [error for start in starts if (error := start.exception())]
        started = [start.result() for start in starts if not start.exception()]
        if failed:
            for server in started:
                server.stop()
            raise failed[0]
        numbers: dict[Server, int] = {server: number for number, server in enumerate(started)}

        def restarted(dead: Server) -> VllmServer:
            new = made(numbers[dead])
            numbers[new] = numbers.pop(dead)
            return new

        pool = Pool(started, restarted if role == "policy" else None)
        self._live[role] = (model, pool)
        return pool

    def _remote(self, model: Ref) -> Pool:
        """The servers at `policy_urls`; those that came back since they were last asked are taken in again."""
        if self._elsewhere not in (None, model.digest):
            raise MisfitError(
                f"serving.policy_urls serve one model, and this run asked them for another before {model.step}/"
                f"{model.key}: run it without policy_urls, or a flow for each model"
            )
        assert self._serving.policy_name is not None
        name, length = self._serving.policy_name, self._serving.policy.max_model_len
        _, pool = self._live.get("elsewhere", (model, Pool([])))
        if pool.failed():  # all were away: look again
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
                log.warning("%s can not be reached; its requests go to the others", server.url)
        if not pool.living():
            raise ServerError(f"none of serving.policy_urls can be reached: {', '.join(self._serving.policy_urls)}")
        self._live["elsewhere"], self._elsewhere = (model, pool), model.digest
        return pool

    def _stop(self, role: str) -> None:
        held = self._live.pop(role, None)
        if held is not None:
            held[1].stop()

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for role in list(self._live):
                self._stop(role)
