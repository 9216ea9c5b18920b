"""The configuration of a training run: plain data that flows can import without torch. The defaults are the paper's
(stages 2 and 3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from infra.training.limits import DpoGuards, RlGuards, TrainingGuards

PolicyGradient = Literal["rloo", "reinforce", "grpo"]
Method = Literal["dpo", PolicyGradient]
"""How stage 3 trains: by preference pairs, or by a policy gradient."""
METHODS: tuple[Method, ...] = ("dpo", "rloo", "reinforce", "grpo")
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Paths(BaseModel, frozen=True, extra="forbid"):
    """The local files that a trainer reads and writes."""

    model: Path = Field(description="Folder of the model to train (safetensors and tokenizer)")
    data: tuple[Path, ...] = Field(
        min_length=1, description="Local Parquet files with the text columns of the training method"
    )
    output: Path = Field(
        description="Folder for the trained model; the report (see `trained_path`) is written last, after all checks"
    )
    resume: Path | None = Field(
        None,
        description="Folder of the checkpoint to go on from (infra.training.checkpoints); null: start anew",
    )
    name: str = Field("training", description="Name of the training for trackers, STEP-KEY")
    tracking: Path | None = Field(
        None, description="Folder for what trackers keep on this machine; null: `tracking` beside `output`"
    )


Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
"""Schedules of transformers that need no setting beside learning rate and warm-up."""


class Recipe(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Training settings that all trainers share."""

    epochs: float = Field(gt=0, le=10_000, description="Passes over the data")
    learning_rate: float = Field(gt=0, description="Peak learning rate")
    warmup_ratio: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of all steps during which the learning rate rises to its peak; at least one step has it",
    )
    schedule: Schedule = Field("cosine", description="Learning-rate schedule, as named in transformers")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay; the paper does not state it")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Maximum gradient norm; larger gradients are clipped. The paper does not state it"
    )
    batch: int = Field(128, gt=0, description="Rows (or pairs) per optimiser step, over all ranks")
    ranks: int | None = Field(
        None,
        ge=1,
        description="Number of training processes on each host (BOLT: 8, one per GPU, for 7B and 8B). Null: one per "
        "GPU, as far as they divide the batch; on a CPU one, with all cores",
    )
    micro_batch: int = Field(
        1,
        gt=0,
        description="Rows (or pairs) that a rank processes at once, if all are equally long; must divide batch / ranks",
    )
    max_length: int = Field(
        16384, gt=1, description="Maximum length of prompt plus completion in tokens, including the end token"
    )
    overlong: Literal["error", "drop"] = Field(
        "error", description="What to do with rows over max_length: stop the run, or drop and count them; none is cut"
    )
    max_bad_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share of rows that may be skipped because they cannot be trained on (an empty completion, "
        "`chosen` equal to `rejected`); the run stops if there are more, but never for a single one (this project's "
        "choice)",
    )
    sample_tokens: int = Field(
        512,
        ge=1,
        description="Longest answer, in tokens, that the trained model is asked for before it is published; model card "
        "and manifest say whether it keeps to the format (this project's choice)",
    )
    require_format: bool = Field(
        False,
        description="Do not publish a trained model whose answer is off the format. Its files stay, and are published "
        "without another training once this is false",
    )
    zero_stage: Literal[0, 2, 3] = Field(
        2, description="DeepSpeed ZeRO stage: 0 shards nothing, 2 optimiser state and gradients, 3 weights too"
    )
    bf16: bool | None = Field(
        None, description="Compute in bfloat16 with float32 master weights. Null: where the machine computes in it"
    )
    liger: bool | None = Field(
        None,
        description="Use liger-kernel's fused layers. Null: on GPUs, if it is installed and has them for the model",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the shuffling and of all other randomness")
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the model, which must be a local folder: none is downloaded. Off "
        "unless you trust it",
    )
    checkpoint_minutes: float = Field(
        15,
        ge=0,
        description="Minutes between two checkpoints in the work folder, from which a killed training goes on; 0: one "
        "after every step. The last two are kept",
    )
    checkpoint_copy_minutes: float = Field(
        30,
        ge=0,
        description="Minutes between two copies of the last checkpoint to the artifact store, from which another host "
        "can go on",
    )
    report_to: tuple[Tracker, ...] = Field(
        ("tensorboard",),
        description="Trackers that the training's curves are sent to. TensorBoard's files are kept with the model; the "
        "others must be installed, and are configured by their own environment variables",
    )
    guards: TrainingGuards = Field(TrainingGuards(), description="Limits that stop the training with a reason")

    @model_validator(mode="after")
    def _exact_batches(self) -> Self:
        if self.ranks:
            self.accumulation(self.ranks)
        return self

    def steps(self, rows: int) -> int:
        """Optimiser steps over `rows` rows. The last batch of an epoch may have fewer rows than `batch`."""
        return math.ceil(self.epochs * math.ceil(rows / self.batch))

    def warmup_steps(self, rows: int) -> int:
        """Steps below the peak learning rate: fewer than all, since the first of them has the rate 0."""
        steps = self.steps(rows)
        return min(math.ceil(self.warmup_ratio * steps), steps - 1)

    def accumulation(self, ranks: int) -> int:
        """Micro-batches per rank and optimiser step. Raises `ValueError` if they cannot add up to exactly `batch`."""
        if self.batch % (self.micro_batch * ranks):
            raise ValueError(
                f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch} x ranks {ranks}: change one "
                f"of them, so that each optimiser step has exactly `batch` rows; {self._nearest(ranks)}"
            )
        return self.batch // (self.micro_batch * ranks)

    def _nearest(self, ranks: int) -> str:
        """Settings that would do, in words."""
        least = self.micro_batch * ranks
        found = f"batch {max(1, round(self.batch / least)) * least} would do"
        if self.batch % ranks:
            return found
        return f"micro_batch {math.gcd(self.micro_batch, self.batch // ranks)} or {found}"


class SftRecipe(Recipe, frozen=True):
    """Stage 2, LongCoT SFT. Columns: `prompt` (the exact rendered chat prompt) and `completion` (thoughts and
    solution)."""

    epochs: float = Field(4, gt=0, le=10_000, description="Passes over the data")
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate")
    packing: bool | None = Field(
        None,
        description="Lay the rows of an optimiser step end to end, without padding and without attention from one to "
        "another; `batch` counts rows all the same. A rank then processes up to micro_batch x max_length tokens at "
        "once. Null: where it is exact. Where it is off, rows of similar length are padded together",
    )


class DpoRecipe(Recipe, frozen=True):
    """Stage 3, one DPO iteration. Columns: `prompt`, `chosen`, `rejected`; the loss covers thoughts and solution."""

    epochs: float = Field(2, gt=0, le=10_000, description="Passes over the data")
    learning_rate: float = Field(5e-7, gt=0, description="Peak learning rate")
    beta: float = Field(0.1, gt=0, description="Strength of the KL penalty towards the reference policy")
    sft_coefficient: float = Field(
        0.0, ge=0, description="Weight of an additional SFT loss on the chosen completion; 0 is the paper's DPO"
    )
    end_token: bool = Field(
        True, description="Put the end token after each completion; false where completions are the thoughts alone"
    )
    guards: DpoGuards = Field(DpoGuards(), description="Limits that stop the training with a reason")


class RlRecipe(Recipe, frozen=True):
    """Stage 3, one iteration by a policy gradient. Columns: `query_id`, `prompt`, `response`, `ended`, `reward`, a row
    for each sample. The defaults are TRL's, where the paper states none."""

    epochs: float = Field(1, gt=0, le=10_000, description="Passes over the samples")
    learning_rate: float = Field(1e-6, gt=0, description="Peak learning rate (TRL's default; not stated in the paper)")
    batch: int = Field(128, gt=1, description="Samples per optimiser step, over all ranks")
    beta: float = Field(
        0.05,
        ge=0,
        description="Weight of the KL divergence from pi_0: taken off the reward of a whole response (RLOO, REINFORCE) "
        "or added to the loss of each token (GRPO). TRL's default for RLOO; the paper does not state it",
    )
    clip: float = Field(
        0.2,
        gt=0,
        description="How far the ratio of the policy to the one that sampled may leave 1 before a sample no longer "
        "counts (PPO's clipped objective; TRL's default)",
    )
    on_policy: bool = Field(
        False,
        description="Sample while training, anew for each optimiser step, with transformers' own `generate`. False: "
        "train on the iteration's samples, which vLLM draws before",
    )
    scale_rewards: bool = Field(
        True, description="GRPO only: divide advantages by the standard deviation of the group's rewards"
    )
    baseline_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="REINFORCE only: decay of a moving average of rewards, which is taken off each reward. Null: "
        "no baseline",
    )
    guards: RlGuards = Field(RlGuards(), description="Limits that stop the training with a reason")


UNUSED: dict[Method, tuple[str, ...]] = {
    "rloo": ("scale_rewards", "baseline_decay"),
    "reinforce": ("scale_rewards",),
    "grpo": ("baseline_decay",),
}
"""The fields of `RlRecipe` that a method does not use."""


class SftConfig(Paths, SftRecipe, frozen=True):
    """The configuration of an SFT trainer process."""

    columns: ClassVar = ("prompt", "completion")


class DpoConfig(Paths, DpoRecipe, frozen=True):
    """The configuration of a DPO trainer process."""

    columns: ClassVar = ("prompt", "chosen", "rejected")
    reference: Path = Field(
        description="Folder of the reference policy pi_0, the SFT model: fixed over all iterations, without a default"
    )


class RlConfig(Paths, RlRecipe, frozen=True):
    """The configuration of a policy-gradient trainer process."""

    columns: ClassVar = ("query_id", "prompt", "response")
    method: PolicyGradient
    reference: Path = Field(description="Folder of the reference policy pi_0, as for DPO")
    temperature: float = Field(gt=0, description="Temperature that the samples were drawn with")


TrainingConfig = SftConfig | DpoConfig | RlConfig
WITHOUT_EFFECT = (
    "checkpoint_minutes",
    "checkpoint_copy_minutes",
    "guards",
    "report_to",
    "max_bad_share",
    "require_format",
)
"""Fields of a recipe that do not change the trained model: they may differ where a training is resumed."""


def resumable_settings(config: TrainingConfig, ranks: int) -> dict[str, Any]:
    """What a training and the checkpoint that it goes on from must have in common, beside their files."""
    outside = {*Paths.model_fields, "reference", "rewarding", *WITHOUT_EFFECT}
    return {**config.model_dump(mode="json", exclude=outside), "ranks": ranks}


def trained_path(output: Path) -> Path:
    """The file of a trainer's report (steps, loss, tokens, seconds), next to the folder of the trained model."""
    return output.parent / f"{output.name}.trained.json"
