"""Who is being served: at most one policy and one reward model at a time, started when first asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.manifest import Ref
from infra.models import fetch_model
from infra.store import Store
from infra.vllm_server import ServerOptions, VllmServer


class ServingConfig(BaseModel):
    """How models are served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: ServerOptions = Field(description="vLLM options of the model that generates.")
    reward: ServerOptions = Field(description="vLLM options of the reward model.")
    share_devices: bool = Field(
        True,
        description="Policy, reward model and trainer take turns on the same devices. False is for machines where all "
        "of them fit at once: the reward model's server stays up beside the others, which saves a start a stage.",
    )


class Servers:
    """The vLLM servers of one flow run. Leaving the context ends them all.

    A server is started by the first step that asks for its model: a run whose steps are all cached starts none.
    """

    def __init__(self, config: ServingConfig, store: Store, work_dir: Path) -> None:
        self.work_dir = work_dir
        self._serving = config
        self._store = store
        self._lock = threading.Lock()
        self._live: dict[str, tuple[Ref, VllmServer]] = {}

    def generation(self, model: Ref) -> VllmServer:
        """The server of a policy. Raises `infra.vllm_server.ServerError` where it does not start."""
        return self._server("policy", model)

    def reward(self, model: Ref) -> VllmServer:
        """The server of a sequence-classification reward model. Raises as `generation`."""
        return self._server("reward", model)

    def engine(self, role: Literal["policy", "reward"]) -> str:
        """The serving options that can change what a server answers, as JSON: an ingredient of cache keys.

        How the work is laid out (`tensor_parallel_size`, `max_num_seqs`, memory) is left out: it changes the last bits
        of a logit, as another GPU would, not what is sampled from; and a run may move to another machine half way.
        """
        kept = {"dtype", "max_model_len", "seed", "extra_args", "trust_remote_code"}
        return getattr(self._serving, role).model_dump_json(include=kept)  # type: ignore[no-any-return]

    def release(self) -> None:
        """Free what a trainer needs: every server where devices are shared, else the policy's."""
        with self._lock:
            for role in list(self._live) if self._serving.share_devices else ["policy"]:
                self._stop(role)

    def _server(self, role: str, model: Ref) -> VllmServer:
        with self._lock:
            if role in self._live:
                held, server = self._live[role]
                if held.digest == model.digest:
                    server.check()
                    return server
            for other in list(self._live) if self._serving.share_devices else [role]:
                self._stop(other)
            server = VllmServer(
                fetch_model(self._store, model, self.work_dir),
                self._serving.policy if role == "policy" else self._serving.reward,
                log_path=self.work_dir / "logs" / f"{role}-{model.step}-{model.key}.log",
                runner="generate" if role == "policy" else "pooling",
                served_name=role,
            )
            server.start()
            self._live[role] = (model, server)
            return server

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
