"""What makes a training faster on a machine, and whether it is used: decided here for the plan and the trainer.

Nothing here changes what is learned, only how fast. No torch is loaded, so that a dry run can say what will be used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from infra.errors import BadInput
from infra.processes.devices import BF16_CAPABILITY, Machine, this_machine
from infra.training.config import DpoRecipe, Recipe, RlRecipe, SftRecipe, TrainingConfig
from infra.training.liger import Switch, liger

PACKABLE = frozenset(
    {"cohere", "gemma", "gemma3_text", "granite", "llama", "mistral", "olmo2", "olmo3", "phi", "phi3"}
    | {"qwen2", "qwen3", "smollm3", "starcoder2"}
)
"""Model families (`model_type`) whose packed rows have the logits of single rows, as a test shows of each."""
_LENGTHY = frozenset({"dynamic", "longrope"})
"""Scalings of positions (`rope_type`) that depend on the length of the sequence."""
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
Config = TypeVar("Config", bound=TrainingConfig)


def ranks_of(recipe: Recipe, machine: Machine | None = None, *, nodes: int = 1) -> int:
    """The training processes to start on each of `nodes` machines: the recipe's `ranks`, or else what is fastest on
    such a machine (this one).

    On GPUs that is one for each, as far as `batch` is a multiple of `micro_batch` times as many. On a CPU it is one
    with all cores: every rank more is a copy of the model, and gradients to exchange.
    """
    if recipe.ranks is not None:
        return recipe.ranks
    most = (machine or this_machine()).gpus or 1
    return max((n for n in range(1, most + 1) if recipe.batch % (recipe.micro_batch * n * nodes) == 0), default=1)


def switches(recipe: Recipe, model: Mapping[str, Any], machine: Machine) -> dict[str, Switch]:
    """What a training uses.

    Args:
        model: the model's config.json.

    Raises:
        BadInput: the recipe asks for what cannot be had, or would not be exact.
    """
    found = {}
    if isinstance(recipe, SftRecipe):
        found["packing"] = _packing(recipe, model, machine)
        why = "no padding to save" if found["packing"].on else "rows of a step that are alike are padded together"
        found["length groups"] = Switch(not found["packing"].on, why)
    elif isinstance(recipe, DpoRecipe):
        found["packing"] = Switch(False, "TRL's DPO has no padding-free batches")
        if recipe.sft_coefficient:
            found["length groups"] = Switch(False, "they would weigh sft_coefficient's loss otherwise")
        else:
            found["length groups"] = Switch(True, "pairs of a step that are alike are padded together")
        found["reference once"] = Switch(True, "its log-probabilities are computed before training and kept in a file")
    elif isinstance(recipe, RlRecipe):
        found["packing"] = Switch(False, "TRL's policy gradients have no padding-free batches")
        found["length groups"] = Switch(True, "samples of a step that are alike are padded together")
        found["log-probabilities once"] = Switch(True, "the sampling policy's and pi_0's are computed before training")
    found["liger"] = _liger(recipe, model, machine)
    found["bf16"] = _bf16(recipe, machine)
    found["gradient checkpointing"] = Switch(recipe.gradient_checkpointing, "as set")
    return found


def settled(recipe: AnyRecipe, model: Mapping[str, Any], machine: Machine) -> AnyRecipe:
    """The recipe with a value for each switch that it leaves open. Raises as `switches`."""
    found = switches(recipe, model, machine)
    names = [name for name in ("packing", "liger", "bf16") if name in type(recipe).model_fields]
    return recipe.model_copy(update={name: found[name].on for name in names})


def decided(config: Config) -> tuple[Config, dict[str, Switch]]:
    """The configuration with a value for each switch that it leaves open, and all switches.

    Raises `BadInput` as `switches`.
    """
    model = json.loads((config.model / "config.json").read_text())
    return settled(config, model, this_machine()), switches(config, model, this_machine())


def told(found: Mapping[str, Switch]) -> str:
    """The switches on one line."""
    return ", ".join(f"{name} {'on' if each.on else 'off'} ({each.why})" for name, each in found.items())


def _texts(told: Any) -> set[str]:
    """All texts among the values of a nested mapping."""
    if isinstance(told, Mapping):
        return set().union(*map(_texts, told.values()))
    return {told} if isinstance(told, str) else set()


def _packing(recipe: SftRecipe, model: Mapping[str, Any], machine: Machine) -> Switch:
    kind = str(model.get("model_type"))
    cannot = None
    if kind not in PACKABLE:
        cannot = f"not known to be exact for {kind}"
    elif recipe.trust_remote_code and model.get("auto_map"):
        cannot = "not known to be exact for the model's own code"
    elif lengthy := _LENGTHY & _texts(model.get("rope_parameters") or model.get("rope_scaling")):
        cannot = f"{min(lengthy)} positions would depend on the other rows"
    elif model.get("attention_dropout"):
        cannot = "the model's attention_dropout is not 0"
    elif machine.gpus and machine.capability < BF16_CAPABILITY:
        cannot = "FlashAttention needs a GPU of compute capability 8 or more"
    elif machine.gpus and recipe.bf16 is False:
        cannot = "FlashAttention needs bf16"
    if cannot and recipe.packing:
        raise BadInput(f"packing cannot be used: {cannot}. Set packing to false or null")
    if cannot:
        return Switch(False, cannot)
    if recipe.packing is not None:
        return Switch(recipe.packing, "as set")
    return Switch(True, "exact: no row attends to another")


def _liger(recipe: Recipe, model: Mapping[str, Any], machine: Machine) -> Switch:
    able = liger(model, on_gpu=machine.gpus > 0, installed=machine.liger)
    if recipe.liger and not able.on:
        raise BadInput(f"liger cannot be used: {able.why}. Set liger to false or null")
    return able if recipe.liger is None else Switch(recipe.liger, "as set")


def _bf16(recipe: Recipe, machine: Machine) -> Switch:
    if recipe.bf16 is not None:
        return Switch(recipe.bf16, "as set")
    if machine.gpus:
        return Switch(machine.bf16, "the GPUs have it" if machine.bf16 else "the GPUs lack it")
    return Switch(machine.bf16, "the CPU has it" if machine.bf16 else "the CPU lacks it")
