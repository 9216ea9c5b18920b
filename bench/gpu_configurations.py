"""What bench/gpu_training.py measures: training configurations that differ in one switch each. No torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from infra.training.config import DpoConfig, SftConfig

SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {  # Llama 3.2 1B: 1.24e9 parameters
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
    },
    "smollm2": {  # SmolLM2 135M
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 32_768,
    },
}
"""Settings of `LlamaConfig`, with tied embeddings. The weights are random, since speed does not depend on them."""
TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
"""What replaces each shape on a CPU; lengths are divided by `SMALLER` there."""
SMALLER = 32
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by a part of the GPU's name, from NVIDIA's data sheets (the SXM form of each)."""


@dataclass(frozen=True)
class Configuration:
    """One training to be measured."""

    name: str
    trainer: Literal["sft", "dpo"]
    length: int = 4096
    """Tokens of the longest row, and of a packed sequence."""
    shape: str = "llama-1b"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe; everything else is what a run chooses by itself."""
    attention: str | None = None
    """`attn_implementation`; None: the trainer's choice."""
    full: bool = False
    """All rows have `length` tokens, instead of a LongCoT mix: log-normal, 200 to `length`."""
    trl: bool = False
    """TRL's own trainer with its defaults: the baseline."""

    @property
    def group(self) -> str:
        """What the configuration is compared within: its first one is what a run chooses by itself."""
        return f"{self.shape} {self.trainer} {self.length // 1024}k"

    @property
    def only_gpu(self) -> bool:
        """Whether a CPU lacks it: the backward pass of flex attention, FlashAttention."""
        return self.attention in ("flex_attention", "flash_attention_2")

    @property
    def micro_batch(self) -> int:
        """Rows or pairs at once: as many sequences of `length` tokens as 16k tokens hold."""
        return max(1, 16_384 // self.length // (2 if self.trainer == "dpo" else 1))

    @property
    def batch(self) -> int:
        """Rows or pairs of an optimiser step."""
        return 32 if self.length <= 4096 and self.trainer == "sft" else 16


CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration("as chosen", "sft"),
    Configuration("as chosen, all rows 4k", "sft", full=True),
    Configuration("TRL's defaults", "sft", trl=True),
    Configuration("no packing", "sft", changes={"packing": False}),
    Configuration("no liger", "sft", changes={"liger": False}),
    Configuration("gradient checkpointing", "sft", changes={"gradient_checkpointing": True}),
    Configuration("attention: sdpa", "sft", attention="sdpa"),
    Configuration("as chosen", "dpo"),
    Configuration("TRL's defaults, reference in memory", "dpo", trl=True),
    Configuration("as chosen", "sft", 16_384),
    Configuration("no packing", "sft", 16_384, changes={"packing": False}),
    Configuration("as chosen", "sft", shape="smollm2"),
    Configuration("TRL's defaults", "sft", shape="smollm2", trl=True),
    Configuration("no liger", "dpo", changes={"liger": False}),
    Configuration("gradient checkpointing", "dpo", changes={"gradient_checkpointing": True}),
    Configuration("gradient checkpointing", "sft", 16_384, changes={"gradient_checkpointing": True}),
    Configuration("attention: flex", "sft", attention="flex_attention"),
    Configuration("attention: flash-attn", "sft", attention="flash_attention_2"),
    Configuration("float32, no packing", "sft", changes={"bf16": False, "packing": False}),
)
"""In the order of their weight: what does not fit into the time is left out at the end."""


def trainer_config(
    configuration: Configuration, model: Path, data: Path, output: Path, length: int
) -> SftConfig | DpoConfig:
    """The configuration of the project's trainer. `length`: that of the configuration, or fewer tokens on a CPU."""
    settings: dict[str, Any] = {
        "model": model,
        "data": (data,),
        "output": output,
        "batch": configuration.batch,
        "micro_batch": configuration.micro_batch,
        "max_length": length,
        "epochs": 20,  # it is stopped long before
        **({"reference": model} if configuration.trainer == "dpo" else {}),
        **configuration.changes,
    }
    return (SftConfig if configuration.trainer == "sft" else DpoConfig)(**settings)


def useful_flops(steps: Mapping[str, float], model: Mapping[str, float]) -> float:
    """Floating-point operations that training on some steps' tokens needs: 6N a token, and 12 L H Q T for attention.

    PaLM (Chowdhery et al. 2022, appendix B). N is the number of parameters (of the embeddings, only the output's), L of
    layers, H of heads, Q the head size, and T the row's length. Padding, recomputation, and a reference policy's
    forward pass are not counted.

    Args:
        steps: `tokens`, and `squares`: the sum of the squares of the rows' lengths.
        model: `parameters`, `layers`, and `width`, heads times head size.
    """
    return 6 * model["parameters"] * steps["tokens"] + 12 * model["layers"] * model["width"] * steps["squares"]
