"""The estimate of a training's memory: parameters and activations against real models, states by hand, monotonicity."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file
from tiny import make_model

from infra.store.model_files import ModelFiles
from infra.training.config import DpoRecipe, Recipe, RlRecipe, SftRecipe
from infra.training.memory import (
    FAMILIES,
    GIB,
    Sizes,
    alternatives,
    estimate,
    head_bytes,
    layer_bytes,
    llama_sizes,
    nearest,
    sizes_of,
)

TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "tie_word_embeddings": False}
LLAMA_8B = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LLAMA_8B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
LLAMA_70B = LLAMA_8B | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
LLAMA_70B |= {"num_attention_heads": 64}
MISTRAL_7B = LLAMA_8B | {"model_type": "mistral", "vocab_size": 32768}


def sizes(config: dict[str, Any]) -> Sizes:
    found = llama_sizes(config)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (LLAMA_8B, 8.03),
        (LLAMA_70B, 70.55),
        (MISTRAL_7B, 7.25),
        (LLAMA_8B | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
         | {"tie_word_embeddings": True}, 1.236),  # Llama-3.2-1B
        ({"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
         | {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}, 7.62),  # Qwen2.5-7B
        ({"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36}
         | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}, 8.19),
        ({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
         | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
         0.1345),  # SmolLM2-135M
    ],
)  # fmt: skip
def test_parameters_are_the_published_ones(config, billions):
    assert sizes(config).parameters / 1e9 == pytest.approx(billions, rel=0.001)


def real(config: dict[str, Any]) -> Any:
    """The model of a configuration, as transformers builds it: random and of bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = {name: value for name, value in config.items() if name != "model_type"}
    plain |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **plain)).bfloat16().train()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_that_transformers_makes(family, tied):
    config = TINY | {"model_type": family, "tie_word_embeddings": tied, "head_dim": 16}
    for changes in ({}, {"attention_bias": True, "mlp_bias": True}):
        if changes and family in ("mistral", "qwen2"):  # have no such options
            continue
        if family == "qwen3":
            changes.pop("mlp_bias", None)
        assert sizes(config | changes).parameters == real(config | changes).num_parameters()


def kept_by_autograd(config: dict[str, Any], rows: int, length: int, padded: bool, dtype: str) -> int:
    """Bytes of what a forward pass keeps for the backward pass, weights not counted."""
    import torch

    model = real(config).to(getattr(torch, dtype))
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: list[torch.Tensor] = []  # all alive until the end, so that no address is used twice
    ids, mask = torch.randint(5, 90, (rows, length)), torch.ones(rows, length, dtype=torch.long)
    if padded:
        mask[0, -3:] = 0
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    stores = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
    return sum(size for address, size in stores.items() if address not in weights)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4)])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_layer_keeps_what_autograd_keeps(family, dtype, width, rows):
    """The estimate takes several rows to be padded, and one row not to be."""
    config = TINY | {"model_type": family, "head_dim": 16}
    two, three = (
        kept_by_autograd(config | {"num_hidden_layers": layers}, rows, 24, rows > 1, dtype) for layers in (2, 3)
    )
    assert layer_bytes(sizes(config), width, rows, 24, masked=rows > 1) == three - two


def test_a_window_needs_a_mask_where_rows_are_longer():
    config = TINY | {"model_type": "mistral", "sliding_window": 8}
    two, three = (kept_by_autograd(config | {"num_hidden_layers": n}, 1, 24, False, "bfloat16") for n in (2, 3))
    assert layer_bytes(sizes(config), 2, 1, 24, masked=True) == three - two

    def kept(window: int | None, length: int) -> float:
        model = sizes(MISTRAL_7B | {"sliding_window": window})
        return estimate(model, SftRecipe(max_length=length), 8, on_gpu=True).activations

    assert kept(4096, 8192) > kept(None, 8192)
    assert kept(4096, 4096) == kept(None, 4096)


def test_packed_rows_have_no_mask_and_fused_layers_keep_less():
    model = sizes(LLAMA_8B)

    def kept(packing: bool, liger: bool = False) -> float:
        recipe = SftRecipe(micro_batch=2, max_length=8192, bf16=True, packing=packing, liger=liger)
        made = estimate(model, recipe, 8, on_gpu=True)
        assert made.moment == "the loss"
        return made.activations

    hidden, inner, tokens = 4096, 14336, 16384
    # neither masks, nor keys and values of 8 heads repeated for 32
    per_layer = 2 * 2 * 8192**2 + tokens * 2 * 2 * (32 - 8) * 128
    assert kept(False) - kept(True) == 32 * per_layer + 2 * 8192**2
    assert kept(True) - kept(True, liger=True) == 32 * tokens * (2 * 4 * hidden + 2 * inner)


def test_states_by_hand():
    """94,528 parameters: embeddings and head 2 x 96 x 64, two layers of 4 x 64 x 64 x 3/4 + 3 x 64 x 128 + 2 x 64."""
    tiny = sizes(TINY)
    count = 2 * 96 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert tiny.parameters == count == 86336

    def states(stage: int, ranks: int, **settings: Any) -> tuple[float, float]:
        made = estimate(tiny, SftRecipe(zero_stage=stage, batch=8, **{"bf16": True, **settings}), ranks, on_gpu=False)
        return made.weights, made.optimiser

    assert states(0, 2) == (2 * count, 12 * count)  # bfloat16 weights; float32 weights and two moments
    assert states(0, 2, bf16=False) == (4 * count, 8 * count)  # the float32 weights are the model's own
    assert states(2, 2) == (2 * count, 6 * count)
    assert states(2, 2, bf16=False) == (4 * count, 6 * count)
    assert states(3, 4) == (2 * count / 4, 3 * count)


def test_the_optimisers_step_by_hand():
    """Short rows: the step is the fullest moment. Without ZeRO it holds gradients twice, in bfloat16 and float32."""
    model = sizes(LLAMA_8B)
    short: dict[str, Any] = {"batch": 8, "max_length": 16, "bf16": True}
    plain = estimate(model, SftRecipe(zero_stage=0, **short), 8, on_gpu=True, process=False)
    assert plain.moment == "the optimiser's step"
    assert plain.total == (2 + 12 + 2 + 4 + 4) * model.parameters  # and the roots of the second moments
    shared = estimate(model, SftRecipe(zero_stage=2, **short), 8, on_gpu=True, process=False)
    assert shared.total == (2 + (12 + 4 + 4) / 8) * model.parameters


def test_the_head_holds_one_tile_of_logits_or_one_block():
    model = sizes(LLAMA_8B)
    weights, inputs = 128256 * 4096, 16384 * 4096
    assert head_bytes(model, 2, 16384, True, 3) == 2 * 4096 * 32768 + 6 * (weights + inputs)
    more = head_bytes(model, 2, 2 * 16384, True, 3) - head_bytes(model, 2, 16384, True, 3)
    assert more == 6 * inputs  # not a byte for the vocabulary
    on_cpu = [head_bytes(model, 2, tokens, False, 0) for tokens in (100, 16384, 2 * 16384)]
    assert on_cpu[0] == 16 * 100 * 128256 + 2 * (weights + 100 * 4096)
    assert on_cpu[1] == 16 * 2**26 + 2 * (2 * weights + inputs)
    assert on_cpu[2] - on_cpu[1] == 2 * inputs


def test_dpo_takes_two_sequences_a_pair_and_no_reference():
    """The reference's log-probabilities are computed before the training, and it leaves memory."""
    model = sizes(MISTRAL_7B)
    same: dict[str, Any] = {"batch": 64, "max_length": 4096, "bf16": True}
    one = estimate(model, SftRecipe(micro_batch=2, packing=False, **same), 8, on_gpu=True)
    assert estimate(model, DpoRecipe(micro_batch=1, **same), 8, on_gpu=True) == one


def test_a_policy_gradient_that_samples_keeps_its_reference_and_a_cache():
    model = sizes(LLAMA_8B)
    plain = {"bf16": True, "zero_stage": 0, "batch": 64, "micro_batch": 1, "max_length": 4096}

    def needed(**changes: Any) -> Any:
        return estimate(model, RlRecipe(**plain | changes), 8, on_gpu=True)

    before, on_policy = needed(gradient_checkpointing=True), needed(gradient_checkpointing=True, on_policy=True)
    assert on_policy.weights == 2 * before.weights == 2 * 2 * model.parameters
    assert needed(on_policy=True, beta=0).weights == before.weights
    many = needed(gradient_checkpointing=True, on_policy=True, batch=4096)
    assert many.moment == "sampling"
    assert (
        many.activations == 2 * 32 * 8 * 128 * 2 * 4096 * 4096 / 8
    )  # keys and values, layers, heads, size, bf16, tokens


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("config", [TINY, LLAMA_8B])
@pytest.mark.parametrize("kind", [SftRecipe, DpoRecipe])
def test_less_of_anything_needs_no_more(kind, config, on_gpu):
    def total(ranks: int = 2, **settings: Any) -> float:
        return estimate(sizes(config), kind(**{"micro_batch": 4, **settings}), ranks, on_gpu=on_gpu).total

    for stage, bf16, sparing in itertools.product((0, 2, 3), (True, False), (True, False)):
        fixed: dict[str, Any] = {"zero_stage": stage, "bf16": bf16, "gradient_checkpointing": sparing}
        for name, fewer, many in (("max_length", 512, 8192), ("micro_batch", 1, 8)):
            assert total(**fixed, **{name: fewer}) <= total(**fixed, **{name: many})
        assert total(**fixed, ranks=8) <= total(**fixed)
    assert total(gradient_checkpointing=True) < total()
    if config is LLAMA_8B:
        assert total(zero_stage=3, ranks=8) < total(zero_stage=2, ranks=8) < total(zero_stage=0, ranks=8)


def test_a_family_that_is_not_known_is_counted_in_its_files(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    assert sizes_of(ModelFiles.in_folder(folder)).known
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "mixtral"'))
    found = sizes_of(ModelFiles.in_folder(folder))
    assert (found.family, found.known) == ("mixtral", False)
    assert found.parameters == 2 * 96 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    made = estimate(found, SftRecipe(batch=8, bf16=True), 2, on_gpu=True)
    assert made.activations == made.logits == 0
    assert made.weights == 2 * found.parameters


def test_the_other_parts_of_a_model_that_reads_images_count(tmp_path: Path):
    folder = make_model(tmp_path / "m")
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"vision.weight": np.zeros((10, 10), np.float32)}, folder / "model.safetensors")
    found = sizes_of(ModelFiles.in_folder(folder))
    assert (found.family, found.known, found.hidden) == ("llama", True, 64)
    assert found.parameters == sum(each.size for each in weights.values()) + 100


def test_a_configuration_without_sizes_is_not_taken_for_the_familys_default():
    assert llama_sizes({"model_type": "llama"}) is None
    assert llama_sizes(LLAMA_8B | {"num_hidden_layers": None}) is None


def test_the_nearest_settings_come_in_order():
    recipe = SftRecipe(zero_stage=2, micro_batch=4, batch=64, max_length=1024)
    singles = [dict(each.changes) for each in alternatives(recipe, 2)]
    assert singles[:8] == [
        {"gradient_checkpointing": True},
        {"zero_stage": 3},
        {"micro_batch": 2},
        {"micro_batch": 1},
        {"ranks": 4},
        {"ranks": 8},
        {"ranks": 16},
        {"max_length": 896},
    ]
    for each in alternatives(recipe, 2):
        each.recipe.accumulation(each.ranks)  # raises where they do not divide
        assert each.recipe.batch == 64


def test_the_nearest_setting_is_the_first_that_fits():
    model = sizes(LLAMA_8B)

    def fits(recipe: Recipe, ranks: int) -> bool:
        return estimate(model, recipe, ranks, on_gpu=True).total <= 79 * GIB

    paper = SftRecipe(bf16=True)
    assert not fits(paper, 8)
    found = nearest(paper, 8, fits)
    assert found is not None
    assert found.changes == {"gradient_checkpointing": True}
    small = nearest(paper, 1, lambda recipe, ranks: estimate(model, recipe, ranks, on_gpu=True).total <= 24 * GIB)
    assert small is not None
    assert small.changes["gradient_checkpointing"]
    assert small.ranks > 1
    assert nearest(paper, 8, lambda *_: False) is None


def test_sizes_are_plain_data():
    with pytest.raises(ValidationError):
        sizes(TINY).hidden = 3  # type: ignore[misc]
