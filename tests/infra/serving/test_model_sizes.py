"""Weights are compared with what config.json says of them, in full where the model is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import changed, harmed, make_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    GPT2Config,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from infra.errors import BadInput
from infra.serving.model_checks import check_policy, check_reward_model, check_trained
from infra.serving.vllm_server import ServerOptions
from infra.store.model_files import ModelFiles
from infra.store.models import publish_model
from infra.store.store import Store
from infra.store.tables import Provenance
from infra.training.config import SftRecipe

SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2} | {
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 2
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2} | {
    "image_size": 28, "patch_size": 14
}  # fmt: skip
OPTIONS = ServerOptions(max_model_len=256)
SIZES = [
    ({"num_hidden_layers": 1}, "9 tensors are of further layers, such as model.layers.1"),
    ({"num_hidden_layers": 3}, "9 tensors are missing, such as model.layers.2"),
    ({"vocab_size": 128}, r"is \[96, 64\], expected \[128, 64\]"),
    ({"vocab_size": 90}, r"is \[96, 64\], expected \[90, 64\]"),
    ({"hidden_size": 32}, r"is \[96, 64\], expected \[96, 32\]"),
]


@pytest.mark.parametrize(("told", "message"), SIZES)
def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path, told: dict[str, int], message: str) -> None:
    folder = changed(make_model(tmp_path / "m"), **told)
    with pytest.raises(BadInput, match=rf"model .*/m: its weights are not what config\.json describes: .*{message}"):
        check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft")
    with pytest.raises(
        BadInput, match=r"its weights are not what config\.json describes: (num_hidden_layers|vocab_size)"
    ):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: {f"module.{name}": each for name, each in held.items()}, "21 tensors are missing"),
        (lambda held: {name: torch.zeros(0) for name in held}, r"is \[0\], expected"),
        (lambda held: {name: each for name, each in held.items() if "layers.0" not in name}, "9 tensors are missing"),
        (
            lambda held: {n: torch.zeros(9, 64) if "up_proj" in n else t for n, t in held.items()},
            r"up_proj.* \[9, 64\]",
        ),
    ],
)
def test_tensors_that_do_not_make_up_the_model_cannot_be_trained(
    tmp_path: Path, change: Callable[..., Any], message: str, store: Store
) -> None:
    folder = harmed(make_model(tmp_path / "m"), change)
    files = ModelFiles.of(store, publish_model(store, "imported", "k", folder, Provenance()))
    with pytest.raises(BadInput, match=message):
        check_trained(files, SftRecipe(max_length=256), "config.sft")


@pytest.mark.parametrize(
    "family",
    [
        Qwen2Config(tie_word_embeddings=True, **SMALL),
        MixtralConfig(num_local_experts=2, **SMALL),  # whose experts transformers joins
        Gemma3Config(text_config=SMALL | {"head_dim": 32}, vision_config=VISION, mm_tokens_per_image=4),
        GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=256),
    ],
    ids=lambda config: config.model_type,
)
def test_families_that_tie_rename_or_join_tensors_are_taken(tmp_path: Path, family: PretrainedConfig) -> None:
    folder = make_model(tmp_path / "m")
    AutoModelForCausalLM.from_config(family).save_pretrained(folder)
    check_policy(ModelFiles.in_folder(folder), OPTIONS)
    check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft")
    harmed(folder, lambda held: held | {"mtp.layers.0.norm.weight": torch.ones(64)})  # read by servers only
    check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft")


def test_a_head_of_another_width_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = harmed(make_model(tmp_path / "m", reward=True), lambda held: held | {"score.weight": torch.ones(1, 32)})
    with pytest.raises(BadInput, match=r"score\.weight is \[1, 32\] where hidden_size is 64"):
        check_reward_model(ModelFiles.in_folder(folder), OPTIONS)
