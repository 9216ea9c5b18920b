"""Liger's fused layers: used where they compute what the model's own layers compute."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from infra.training.liger import EXACT, liger


def chosen(on_gpu: bool = True, installed: bool = True, **model: Any) -> tuple[bool, str]:
    return liger(model, on_gpu=on_gpu, installed=installed)


@pytest.mark.parametrize("kind", EXACT)
def test_a_familys_usual_configuration_is_trained_with_liger(kind: str) -> None:
    assert chosen(**AutoConfig.for_model(kind).to_dict())[0]
    assert chosen(model_type=kind)[0]


def test_never_on_a_cpu() -> None:
    assert chosen(on_gpu=False, model_type="llama") == (False, "there is no GPU")


@pytest.mark.parametrize("kind", ["mixtral", "gpt2", "bert", None])
def test_never_where_it_is_not_known_to_be_exact(kind: str | None) -> None:
    on, why = chosen(model_type=kind)
    assert not on
    assert str(kind) in why


@pytest.mark.parametrize(
    ("kind", "setting", "activation"),
    [("llama", "hidden_act", "gelu"), ("qwen3", "hidden_act", "relu"), ("gemma2", "hidden_activation", "gelu")],
)
def test_never_with_an_activation_that_liger_would_replace(kind: str, setting: str, activation: str) -> None:
    on, why = chosen(**{"model_type": kind, setting: activation})
    assert not on
    assert activation in why


def test_gemmas_legacy_activation_is_the_approximation() -> None:
    assert chosen(model_type="gemma", hidden_act="gelu", hidden_activation=None)[0]


def test_a_missing_package_is_named() -> None:
    on, why = chosen(installed=False, model_type="llama")
    assert not on
    assert "liger-kernel is not installed" in why


def test_the_families_are_liger_s() -> None:
    patches = pytest.importorskip("liger_kernel.transformers.monkey_patch", reason="liger-kernel is for GPUs")
    assert set(EXACT) <= set(patches.MODEL_TYPE_TO_APPLY_LIGER_FN)
