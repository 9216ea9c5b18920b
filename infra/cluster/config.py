"""How a run uses a Ray cluster: plain data that flows can import without Ray."""

from __future__ import annotations

from pydantic import BaseModel, Field

Resources = dict[str, float]
"""Amounts by the names that Ray knows resources by: `CPU`, `GPU`, or names of your own."""


class RayConfig(BaseModel, frozen=True, extra="forbid"):
    """What a run takes of a Ray cluster. It changes no row: the cache key leaves it out."""

    address: str = Field(
        "auto",
        description="Address of the cluster as the flow's machine reaches it, `HOST:PORT`; `auto`: RAY_ADDRESS, or the "
        "cluster that this machine is a node of. The flow's machine must be a node.",
    )
    shard: Resources = Field(
        {"CPU": 1.0},
        description="What a shard takes of its node while it runs (mining, sampling, filtering, scoring, judging, "
        "perplexity, search).",
    )
    shards_at_once: int = Field(
        4,
        ge=1,
        description="Shards of a step that run at once. A shard that samples sends up to `in_flight` requests to each "
        "server: with more shards, lower it.",
    )
    server: Resources = Field(
        {},
        description="What a vLLM server takes of its node besides its GPUs (`tensor_parallel_size` of them), such as a "
        "resource of your own that only some nodes have.",
    )
    training: Resources = Field({}, description="What a training takes of its node besides its GPUs (`ranks` of them).")
    training_nodes: int = Field(
        1,
        ge=1,
        description="Nodes that train together, with `ranks` training processes on each. With more than one, "
        "BOLT_WORK_DIR must be a folder that all nodes share.",
    )
    wait_s: float = Field(
        600,
        gt=0,
        description="Seconds to wait for nodes with room for a server, a shard or a training, before it fails.",
    )
    restarts: int = Field(
        8, ge=0, description="How often servers of one model are replaced after they died, before the step fails."
    )
