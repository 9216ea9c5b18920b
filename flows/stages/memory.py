"""Whether a training fits in memory: a line of the plan, and a refusal before anything starts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.errors import BadInput
from infra.processes.devices import Machine, computer_memory, gpu_memory, this_machine
from infra.serving.vllm_server import runs_on_cpu
from infra.store.model_files import CONFIG
from infra.training.config import Recipe, RlRecipe
from infra.training.inputs import check_ranks
from infra.training.memory import GIB, Memory, Sizes, estimate, gib, nearest
from infra.training.switches import ranks_of, settled, switches, told

if TYPE_CHECKING:
    from infra.cluster.ray_cluster import Cluster

PLANNED_GPUS, PLANNED_CAPABILITY = 8, 9.0
"""What a plan for other GPUs takes them for: a node of the paper's (8 H100)."""


class Device(NamedTuple):
    """What ranks train on: GPUs of `memory` bytes each, or one computer's memory, which they share."""

    machine: Machine
    memory: float
    planned: bool = False
    """Whether it is not this machine, but a node of a cluster, or what `estimates.gpu_memory_gib` plans for."""

    @property
    def on_gpu(self) -> bool:
        """Whether these are GPUs."""
        return self.machine.gpus > 0

    def room(self, ranks: int) -> float:
        """Bytes for each rank."""
        return self.memory if self.on_gpu else self.memory / ranks

    def said(self, ranks: int) -> str:
        """What it is, for messages."""
        if math.isinf(self.memory):
            return f"how much a GPU {'there' if self.planned else 'here'} has is not known"
        if self.on_gpu:
            return f"a GPU has {gib(self.memory)} GiB"
        computer = "a node" if self.planned else "this machine"
        return f"{computer} has {gib(self.memory)} GiB for {ranks} rank{'s' * (ranks > 1)}"


def device(planned_gib: float | None, *, dry: bool, elsewhere: bool = False, cluster: Cluster | None = None) -> Device:
    """What a training will run on.

    A plan, and a run that trains elsewhere, is for GPUs of `planned_gib`, if given. Else, and for a run itself, this
    machine's GPUs count, the smallest of them. Without a GPU here, those of `planned_gib` count, or this computer's own
    memory. A training that is `elsewhere` runs on a node of the `cluster`, or on GPUs that a plan does not know.
    """
    if cluster is not None and planned_gib is None:
        return Device(*cluster.training_machine, planned=True)
    here = this_machine()
    if planned_gib is None and elsewhere and not runs_on_cpu():
        planned_gib = math.inf
    if planned_gib is not None and (dry or elsewhere or not here.gpus):
        other = Machine(PLANNED_GPUS, PLANNED_CAPABILITY, here.cpu_bf16, here.liger)
        return Device(other, planned_gib * GIB, planned=True)
    return Device(here, min(gpu_memory(), default=math.inf) if here.gpus else computer_memory())


def cached_config(name: str, revision: str) -> dict[str, Any] | None:
    """The config.json of a model on the hub, if it was downloaded before; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, CONFIG, revision=revision)
    found: dict[str, Any] | None = json.loads(Path(path).read_text()) if isinstance(path, str) else None
    return found


def check_trainings(
    title: str,
    model: Mapping[str, Any],
    sizes: Sizes,
    trains: Mapping[str, Recipe],
    on: Device,
    nodes: int,
    share: float,
    reward: float = 0.0,
) -> Iterator[str]:
    """What each training of a model (by the parameter that describes it) uses and needs, a line each.

    Arguments as `check_fits`. `reward`: the share of a GPU that the reward model's server takes.

    Raises:
        BadInput: it cannot run so: `infra.training.inputs.check_ranks`, `infra.training.switches`, `check_fits`.
    """
    for setting, stage in trains.items():
        if not on.planned:
            check_ranks(setting, ranks_of(stage, nodes=nodes))
        yield f"{setting}: {told(switches(stage, model, on.machine))}"
        beside = reward if on.on_gpu and isinstance(stage, RlRecipe) and stage.on_policy else 0.0
        yield check_fits(title, model, sizes, setting, stage, on, nodes, share, beside)


def check_fits(
    title: str,
    model: Mapping[str, Any],
    sizes: Sizes,
    setting: str,
    stage: Recipe,
    on: Device,
    nodes: int,
    share: float,
    beside: float = 0.0,
) -> str:
    """Refuse a training that cannot fit.

    Args:
        title: the model, for messages.
        model: its config.json.
        setting: the parameter that describes the training.
        nodes: machines that train together, each with `stage.ranks` ranks.
        share: the training is refused if its estimate is above this share of a rank's room.
        beside: share of the room that the reward model's server takes while the model is trained.

    Returns:
        What a rank needs, and what there is.

    Raises:
        BadInput: it does not fit; with the nearest settings that do.
    """

    def needed(recipe: Recipe, ranks: int) -> Memory:
        return estimate(sizes, recipe, ranks, on_gpu=on.on_gpu)

    def fits(recipe: Recipe, ranks: int) -> bool:
        return needed(recipe, ranks).total <= (share - beside) * on.room(ranks // nodes)

    recipe, ranks = settled(stage, model, on.machine), nodes * ranks_of(stage, on.machine, nodes=nodes)
    need = needed(recipe, ranks)
    unknown = (
        ""
        if sizes.known
        else f"; {title} is of a family ({sizes.family}) or of sizes that are not known here: activations not counted"
    )
    shown = f"{gib(need.total)} GiB per rank at {need.moment} ({need.said()}); {on.said(ranks // nodes)}{unknown}"
    if beside:
        shown += f", of which the reward model's server takes {beside:.0%} (serving.reward.gpu_memory_utilization)"
    if fits(recipe, ranks):
        return f"{f'memory of {setting}':28} {shown}"
    found = nearest(recipe, ranks, fits)
    if found is None:
        way = (
            "no setting of gradient_checkpointing, zero_stage, micro_batch, ranks and max_length is enough: take more "
            "memory, or a smaller model"
        )
    else:
        changes = {**found.changes, **({"ranks": found.ranks // nodes} if "ranks" in found.changes else {})}
        settings = ", ".join(f"{setting}.{name}={str(value).lower()}" for name, value in changes.items())
        way = f"the nearest settings that fit: {settings} ({gib(needed(found.recipe, found.ranks).total)} GiB per rank)"
    raise BadInput(
        f"{setting}: training {title} does not fit: it needs {shown}. {way[0].upper()}{way[1:]}. If you know that it "
        "fits, raise estimates.memory_share"
    )
