"""What a training run is told: plain data that flows can import without torch. Defaults are the paper's figures
(stages 2 and 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class Paths(BaseModel, frozen=True, extra="forbid"):
    """What a trainer reads and writes on this machine."""

    model: Path = Field(description="Folder of the model to train (safetensors and tokenizer)")
    data: tuple[Path, ...] = Field(min_length=1, description="Local Parquet parts with the text columns of the method")
    output: Path = Field(
        description="Folder for the trained model; its report (see `trained_path`) is written last, after all checks"
    )


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """How to train: what SFT and DPO share."""

    epochs: float = Field(gt=0, description="Passes over the data")
    learning_rate: float = Field(gt=0, description="Peak of the learning rate")
    warmup_ratio: float = Field(
        0.1, ge=0, le=1, description="Share of all steps in which the learning rate rises to its peak"
    )
    schedule: str = Field("cosine", description="Learning-rate schedule, by its name in transformers")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay; the paper does not state it")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients are clipped to this norm; the paper does not state it"
    )
    batch: int = Field(128, gt=0, description="Rows (or pairs) an optimiser step, over all ranks")
    micro_batch: int = Field(1, gt=0, description="Rows (or pairs) one rank takes at once; divides batch / ranks")
    max_length: int = Field(16384, gt=1, description="Longest prompt plus completion, end token included, in tokens")
    overlong: Literal["error", "drop"] = Field(
        "error", description="Rows over max_length: stop the run, or drop and count them; they are never cut"
    )
    zero_stage: Literal[0, 2, 3] = Field(2, description="DeepSpeed ZeRO stage: what is spread over the ranks")
    bf16: bool = Field(True, description="Compute in bfloat16 with float32 master weights")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations: less memory, about a third more time"
    )
    seed: int = Field(0, ge=0, description="Seed of the shuffling and of everything random")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model; off unless you trust it"
    )

    def accumulation(self, ranks: int) -> int:
        """Micro-batches a rank takes an optimiser step. Raises `ValueError` when the global batch cannot be met
        exactly."""
        if self.batch % (self.micro_batch * ranks):
            raise ValueError(
                f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch} x ranks {ranks}: "
                "the global batch would not be the one asked for"
            )
        return self.batch // (self.micro_batch * ranks)


class SftRecipe(Recipe, frozen=True):
    """Stage 2, LongCoT SFT. Columns: `prompt` (the exact rendered chat prompt) and `completion` (thoughts and
    solution)."""

    epochs: float = Field(4, gt=0, description="Passes over the data")
    learning_rate: float = Field(2e-5, gt=0, description="Peak of the learning rate")
    packing: bool = Field(
        False, description="Pack rows into sequences of max_length; `batch` then counts packed sequences"
    )
    group_by_length: bool = Field(False, description="Batch rows of similar length: less padding, less random batches")


class DpoRecipe(Recipe, frozen=True):
    """Stage 3, one DPO iteration. Columns: `prompt`, `chosen`, `rejected`; the loss covers thoughts and solution."""

    epochs: float = Field(2, gt=0, description="Passes over the data")
    learning_rate: float = Field(5e-7, gt=0, description="Peak of the learning rate")
    beta: float = Field(0.1, gt=0, description="Strength of the pull towards the reference")
    sft_coefficient: float = Field(
        0.0, ge=0, description="Weight of an added SFT loss on the chosen completion; 0 is the paper's DPO"
    )


class SftConfig(Paths, SftRecipe, frozen=True):
    """What an SFT trainer process is told."""


class DpoConfig(Paths, DpoRecipe, frozen=True):
    """What a DPO trainer process is told."""

    reference: Path = Field(
        description="Folder of pi_0, the SFT model: fixed over all iterations, never the policy by default"
    )


TrainingConfig = SftConfig | DpoConfig


def trained_path(output: Path) -> Path:
    """Where a trainer reports (steps, loss, tokens, seconds): beside the model folder, which holds the model alone."""
    return output.parent / f"{output.name}.trained.json"
