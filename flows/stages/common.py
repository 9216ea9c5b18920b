"""Parameters that flows share, with the words that describe models to a user."""

from __future__ import annotations

import math
from typing import Any, Literal, Self, TypedDict

from prefect.flows import FlowStateHook
from pydantic import BaseModel, Field, model_validator

from flows.stages.lengths import conflicts, parts
from infra.cluster.config import RayConfig
from infra.operations.alerts import alert
from infra.serving.servers import ServingConfig
from infra.training.config import Recipe, RlRecipe
from infra.training.hosts import HERE, Hosts
from infra.training.switches import ranks_of

A_MODEL = "a local folder, an artifact STEP/KEY, or a hub id ORG/NAME@REVISION"
A_REWARD_MODEL = (
    f"Outcome reward model (a one-label sequence classifier, or ArmoRM): {A_MODEL}. Null: none; then each query needs "
    "a `reference`, and `score.verified_weight` must be above 0."
)


class Hooks(TypedDict):
    """The functions that Prefect calls when a flow run ends."""

    on_completion: list[FlowStateHook[..., Any]]
    on_failure: list[FlowStateHook[..., Any]]
    on_crashed: list[FlowStateHook[..., Any]]


ALERTS: Hooks = {"on_completion": [alert], "on_failure": [alert], "on_crashed": [alert]}


class Estimates(BaseModel, frozen=True, extra="forbid"):
    """Figures that a dry run assumes; the defaults are for an 8B model on H100s (docs/flows.md has their source)."""

    tokens_per_response: int = Field(1_500, ge=1, description="Mean length of a LongCoT response, in tokens.")
    generated_per_gpu_second: float = Field(
        6_400, gt=0, description="Tokens generated per second and GPU; without a GPU, by the machine."
    )
    trained_per_gpu_second: float = Field(
        5_800, gt=0, description="Tokens trained on per second and GPU; without a GPU, by the machine."
    )
    gpu_memory_gib: float | None = Field(
        None,
        gt=0,
        description="Memory of each GPU that the trainings must fit in. A dry run goes by it, and a run by the GPUs of "
        "its machine if it has any. Null: this machine's GPUs, or without a GPU its own memory.",
    )
    memory_share: float = Field(
        1.0,
        gt=0,
        description="A training is refused if its estimate is above this share of the memory that there is.",
    )


def _numbered(schema: dict[str, Any]) -> None:
    """Number the properties: the run form is sorted by `position`, and PostgreSQL does not keep the order of keys."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


class Common(BaseModel, frozen=True, extra="forbid", json_schema_extra=_numbered):
    """Parameters that all flows share. They come last in the run form: people change the others first."""

    serving: ServingConfig = Field(description="How models are served.")
    cluster: Literal["ray"] | None = Field(
        None,
        description="`ray`: shards, servers and trainings run on the nodes of a Ray cluster. Null: on this machine.",
    )
    ray: RayConfig = Field(RayConfig(), description="What a run takes of the Ray cluster, with `cluster: ray`.")
    estimates: Estimates = Field(Estimates(), description="Figures that a dry run assumes.")
    dry_run: bool = Field(
        False, description="Print the plan (steps, which are cached, first prompt, tokens, GPU hours) and stop."
    )

    @model_validator(mode="after")
    def _finite(self) -> Self:
        for path, part, _ in parts(self):
            for name, value in part:
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"{f'{path}.{name}'.lstrip('.')} is {value}: expected a finite number")
        return self

    @model_validator(mode="after")
    def _devices_are_told(self) -> Self:
        serving = self.serving
        several = serving.policy_servers > 1 and serving.policy.tensor_parallel_size > 1
        if self.cluster is None and several and not serving.policy_devices:
            raise ValueError(
                "serving: several servers with several GPUs each: list the GPUs of each server in policy_devices"
            )
        if self.cluster == "ray":
            if serving.policy_devices:
                raise ValueError("serving.policy_devices: leave it out with `cluster: ray`, which deals out the GPUs")
            for path, part, _ in parts(self):
                if isinstance(part, RlRecipe) and part.on_policy:
                    raise ValueError(
                        f"{path}.on_policy is true, but with `cluster: ray` a trainer does not reach the reward "
                        "model's server: set it to false, or leave `cluster` out"
                    )
                if isinstance(part, Hosts) and part.hosts:
                    raise ValueError(f"{path}.hosts: leave it out with `cluster: ray`, which picks the machine")
        return self

    @model_validator(mode="after")
    def _lengths_go_together(self) -> Self:
        if found := list(conflicts(self, self.serving)):
            raise ValueError("; ".join(found))
        return self

    @classmethod
    def __pydantic_init_subclass__(cls, **more: Any) -> None:
        """Order the fields: the flow's own, those of its stage, and these. Pydantic puts inherited fields first."""
        super().__pydantic_init_subclass__(**more)
        fields, own = cls.__pydantic_fields__, cls.__annotations__
        ordered = sorted(fields, key=lambda name: (name in Common.model_fields, name not in own))
        cls.__pydantic_fields__ = {name: fields[name] for name in ordered}
        cls.model_rebuild(force=True)


class Trains(Common):
    """Parameters that all flows share that train a model."""

    training: Hosts = Field(HERE, description="The machines that train.")

    @property
    def nodes(self) -> int:
        """Number of machines that train together."""
        return self.ray.training_nodes if self.cluster else self.training.nodes

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        for path, part, _ in parts(self):
            if isinstance(part, Recipe):
                try:
                    part.accumulation(ranks_of(part, nodes=self.nodes) * self.nodes)
                except ValueError as error:
                    raise ValueError(f"{path}, on {self.nodes} hosts: {error}") from error
            if isinstance(part, RlRecipe) and part.on_policy and self.training.nodes > 1:
                raise ValueError(
                    f"{path}.on_policy is true, but only the machine of the flow reaches the reward model's server: "
                    "train on one host, or set it to false"
                )
        return self
