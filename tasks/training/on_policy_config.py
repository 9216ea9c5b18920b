"""The configuration of a policy-gradient trainer that samples while it trains: plain data, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from cot_formats.responses import Format
from infra.store.manifest import Ref
from infra.training.config import RlConfig
from tasks.rewards.score import ScoreConfig

ROLLOUTS = "rollouts.jsonl"


class Rewarding(BaseModel, frozen=True, extra="forbid"):
    """How samples are rewarded."""

    score: ScoreConfig
    format: Format = Field(description="Format of the samples")
    opened: bool = Field(description="Whether the chat template opens the thoughts at the end of the prompt")
    reward_model: Ref | None = Field(description="The reward model; null: none")
    tokenizer: Path | None = Field(None, description="Folder of the reward model's tokenizer")
    url: str | None = Field(None, description="Address of the server of the reward model")
    served_name: str | None = Field(None, description="The reward model's name there")
    max_length: int = Field(0, description="What the reward model reads at most, in tokens")


class OnPolicyConfig(RlConfig, frozen=True):
    """The configuration of the trainer process. The data have the column `reference` as well."""

    columns: ClassVar = ("query_id", "prompt", "query")
    samples_per_query: int = Field(ge=2, description="Samples of each query")
    max_tokens: int = Field(gt=0, description="Maximum length of a sample, in tokens")
    top_p: float = Field(gt=0, le=1, description="Probability mass of nucleus sampling")
    rewarding: Rewarding


def rollouts_path(output: Path) -> Path:
    """The file of what was sampled so far, beside the folder of the trained model."""
    return output.with_name(f"{output.name}.{ROLLOUTS}")
