"""What a training uses on a machine, and why not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from infra.errors import BadInput
from infra.processes.devices import Machine
from infra.training.config import DpoRecipe, SftRecipe
from infra.training.switches import settled, switches, told

GPUS = Machine(gpus=8, capability=9.0, cpu_bf16=True, liger=True)
OLD = replace(GPUS, capability=7.5)
CPU = Machine(gpus=0, capability=0.0, cpu_bf16=True, liger=True)
LLAMA = {"model_type": "llama"}


def used(recipe: Any, model: dict[str, Any], machine: Machine) -> set[str]:
    return {name for name, each in switches(recipe, model, machine).items() if each.on}


@pytest.mark.parametrize(
    ("recipe", "model", "machine", "expected"),
    [
        (SftRecipe(), LLAMA, GPUS, {"packing", "liger", "bf16"}),
        (SftRecipe(), LLAMA, OLD, {"length groups", "liger"}),
        (SftRecipe(), LLAMA, replace(GPUS, liger=False), {"packing", "bf16"}),
        (SftRecipe(liger=False), LLAMA | {"rope_scaling": {"rope_type": "llama3"}}, GPUS, {"packing", "bf16"}),
        (SftRecipe(), LLAMA | {"auto_map": {}, "rope_scaling": None}, replace(GPUS, liger=False), {"packing", "bf16"}),
        (SftRecipe(), {"model_type": "mamba"}, GPUS, {"length groups", "bf16"}),
        (SftRecipe(), {"model_type": "gemma2"}, GPUS, {"length groups", "liger", "bf16"}),
        (SftRecipe(), LLAMA | {"attention_dropout": 0.1}, GPUS, {"length groups", "liger", "bf16"}),
        (SftRecipe(packing=False, liger=False, bf16=False), LLAMA, GPUS, {"length groups"}),
        (SftRecipe(gradient_checkpointing=True), LLAMA, CPU, {"packing", "bf16", "gradient checkpointing"}),
        (SftRecipe(), LLAMA, replace(CPU, cpu_bf16=False), {"packing"}),
        (DpoRecipe(), LLAMA, GPUS, {"length groups", "reference once", "liger", "bf16"}),
        (DpoRecipe(sft_coefficient=1), LLAMA, CPU, {"reference once", "bf16"}),
    ],
)  # fmt: skip
def test_what_is_exact_and_supported_is_used(recipe: Any, model: dict[str, Any], machine: Machine, expected: set[str]):
    assert used(recipe, model, machine) == expected
    told_of = told(switches(recipe, model, machine))
    assert "\n" not in told_of
    assert all(f"{name} on" in told_of for name in expected)
    final = settled(recipe, model, machine)
    assert settled(final, model, machine) == final
    assert used(final, model, machine) == expected
    assert (final.bf16, final.liger) == ("bf16" in expected, "liger" in expected)


@pytest.mark.parametrize(
    ("recipe", "model", "machine", "message"),
    [
        (SftRecipe(packing=True), {"model_type": "mamba"}, GPUS, "packing cannot .*: not known to be exact for mamba"),
        (SftRecipe(packing=True), {}, GPUS, "not known to be exact for None"),
        (SftRecipe(packing=True), LLAMA, OLD, "compute capability 8"),
        (SftRecipe(packing=True), LLAMA | {"rope_scaling": {"type": "dynamic"}}, GPUS, "dynamic positions"),
        (SftRecipe(packing=True), LLAMA | {"rope_parameters": {"a": {"rope_type": "longrope"}}}, GPUS, "longrope pos"),
        (SftRecipe(packing=True, trust_remote_code=True), LLAMA | {"auto_map": {"AutoModel": "m"}}, GPUS, "own code"),
        (SftRecipe(packing=True, bf16=False), LLAMA, GPUS, "needs bf16"),
        (SftRecipe(packing=True), LLAMA | {"attention_dropout": 0.1}, CPU, "attention_dropout is not 0"),
        (DpoRecipe(liger=True), LLAMA, CPU, "liger cannot be used: there is no GPU"),
        (DpoRecipe(liger=True), LLAMA, replace(GPUS, liger=False), "liger-kernel is not installed"),
        (DpoRecipe(liger=True), {"model_type": "mamba"}, GPUS, "not known to be exact for mamba"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_and_not_left_out(
    recipe: Any, model: dict[str, Any], machine: Machine, message: str
):
    with pytest.raises(BadInput, match=message):
        switches(recipe, model, machine)


def test_the_plan_needs_no_torch() -> None:
    code = "import sys, infra.training.switches as s; s.this_machine(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
