"""Whether liger-kernel's fused layers (normalisation, rotary positions, gated MLP) may replace a model's own.

They may where they compute the same. TRL applies them when its argument `use_liger_kernel` is set; it keeps its own
fused output layer, so that liger's cross-entropy is never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_SILU, _TANH = frozenset({"silu", "swish"}), frozenset({"gelu_pytorch_tanh"})
EXACT: Mapping[str, tuple[str, frozenset[str]]] = {
    **dict.fromkeys(("exaone4", "glm4", "gpt_oss", "granite", "hunyuan_v1_dense"), ("hidden_act", _SILU)),
    **dict.fromkeys(("llama", "ministral", "mistral", "olmo2", "olmo3", "phi3"), ("hidden_act", _SILU)),
    **dict.fromkeys(("qwen2", "qwen3", "smollm3"), ("hidden_act", _SILU)),
    **dict.fromkeys(("gemma2", "gemma3_text"), ("hidden_activation", _TANH)),
    "gemma": ("hidden_act", _TANH | {"gelu"}),  # transformers takes Gemma's "gelu" for the tanh approximation too
}
"""Model families (`model_type`), the setting of their MLP's activation, and the activations that liger has for it.

Of each, logits and gradients were compared with those of transformers' own layers under Triton's interpreter
(liger-kernel 0.8.5, transformers 5.19, float32): they agree to 4e-6. Mixtures of experts do not run there."""


class Switch(NamedTuple):
    """Whether something is used, and why (or why not)."""

    on: bool
    why: str


def liger(model: Mapping[str, Any], *, on_gpu: bool, installed: bool) -> Switch:
    """Whether to train with liger's layers.

    An activation that liger does not have is looked for, because liger does not: with `hidden_act` "gelu" it silently
    computes a Llama with SiLU.

    Args:
        model: the model's config.json. A missing activation is the family's usual one.
        on_gpu: whether the model is trained on GPUs; liger's layers are Triton kernels.
        installed: whether the package liger-kernel is.
    """
    kind = str(model.get("model_type"))
    if not on_gpu:
        return Switch(False, "there is no GPU")
    if kind not in EXACT:
        return Switch(False, f"not known to be exact for {kind}")
    setting, activations = EXACT[kind]
    activation = model.get(setting)
    if activation is not None and activation not in activations:
        return Switch(False, f"it has no {activation} for {kind}")
    if not installed:
        return Switch(False, "liger-kernel is not installed (it is in the extra `gpu`)")
    return Switch(True, f"exact for {kind}")
