"""Whether the trainings of a run fit in memory: a line of the plan for each, and a refusal before anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from infra.errors import BadInput
from infra.processes.devices import computer_memory, gpu_memory, trains_on_gpus
from infra.store.model_files import CONFIG, language_part
from infra.training.config import Recipe
from infra.training.memory import GIB, Memory, Sizes, estimate, gib, llama_sizes, nearest
from infra.training.switches import ranks_of, this_machine
from tasks.training.dpo import DpoStage
from tasks.training.sft import SftStage

Trained = SftStage | DpoStage
GPUS_OF_A_NODE = 8  # of a plan for GPUs that are not here, where `ranks` is left open (BOLT: 8)


class Device(NamedTuple):
    """What ranks train on: GPUs of `memory` bytes each, or one computer's memory, which they share."""

    on_gpu: bool
    memory: float

    def room(self, ranks: int) -> float:
        """Bytes for each rank."""
        return self.memory if self.on_gpu else self.memory / ranks

    def said(self, ranks: int) -> str:
        """What it is, for messages."""
        if self.on_gpu:
            return f"a GPU has {gib(self.memory)} GiB"
        return f"this machine has {gib(self.memory)} GiB for {ranks} rank{'s' * (ranks > 1)}"


def device(planned_gib: float | None, *, dry: bool) -> Device:
    """What a training will run on.

    A plan is for GPUs of `planned_gib`, if given. Else, and for a run itself, this machine's GPUs count, the smallest
    of them. Without a GPU here, those of `planned_gib` count, or this computer's own memory.
    """
    here = gpu_memory() if trains_on_gpus() else ()
    if planned_gib is not None and (dry or not here):
        return Device(True, planned_gib * GIB)
    return Device(True, min(here)) if here else Device(False, computer_memory())


def cached_sizes(name: str, revision: str) -> Sizes | None:
    """The sizes of a model on the hub, if its config.json was downloaded before; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, CONFIG, revision=revision)
    return llama_sizes(language_part(json.loads(Path(path).read_text()))) if isinstance(path, str) else None


def check_fits(
    title: str, sizes: Sizes, trains: Mapping[str, Trained], device: Device, share: float, nodes: int = 1
) -> list[str]:
    """Refuse trainings that cannot fit.

    Args:
        title: the model, for messages.
        trains: the trainings of the model, by the parameter that describes each.
        share: a training is refused if its estimate is above this share of a rank's room.
        nodes: the machines that train, each with a stage's `ranks`.

    Returns:
        For each, what a rank needs and what there is.

    Raises:
        BadInput: a training does not fit; with the nearest settings that do.
    """
    return [_checked(title, sizes, setting, stage, device, share, nodes) for setting, stage in trains.items()]


def _checked(title: str, sizes: Sizes, setting: str, stage: Trained, device: Device, share: float, nodes: int) -> str:
    def needed(recipe: Recipe, ranks: int) -> Memory:
        return estimate(sizes, recipe, ranks * nodes, on_gpu=device.on_gpu)

    def fits(recipe: Recipe, ranks: int) -> bool:
        return needed(recipe, ranks).total <= share * device.room(ranks)

    machine = this_machine()
    elsewhere = device.on_gpu and not machine.gpus
    ranks = ranks_of(stage, stage.ranks, replace(machine, gpus=GPUS_OF_A_NODE) if elsewhere else machine, nodes=nodes)
    need = needed(stage, ranks)
    unknown = (
        ""
        if sizes.known
        else f"; {title} is of a family ({sizes.family}) or of sizes that are not known here: activations not counted"
    )
    told = f"{gib(need.total)} GiB per rank at {need.moment} ({need.said()}); {device.said(ranks)}{unknown}"
    if fits(stage, ranks):
        return f"{f'memory of {setting}':28} {told}"
    found = nearest(stage, ranks, fits)
    if found is None:
        way = (
            "no setting of gradient_checkpointing, zero_stage, micro_batch, ranks and max_length is enough: take more "
            "memory, or a smaller model"
        )
    else:
        settings = ", ".join(f"{setting}.{name}={_spelt(value)}" for name, value in found.changes.items())
        way = f"the nearest settings that fit: {settings} ({gib(needed(found.recipe, found.ranks).total)} GiB per rank)"
    raise BadInput(
        f"{setting}: training {title} does not fit: it needs {told}. {way[0].upper()}{way[1:]}. If you know that it "
        "fits, raise estimates.memory_share"
    )


def _spelt(value: object) -> str:
    return str(value).lower()
