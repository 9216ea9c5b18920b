"""How the two nano models are made: plain configurations, read by the training processes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class PretrainRecipe(BaseModel):
    """One nano training run. Both models share the shape of the run; only the data differs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(13_000_000, ge=1, description="Tokens read in all.")
    row_tokens: int = Field(768, ge=1, description="Tokens a row.")
    rows_per_step: int = Field(8, ge=1, description="Rows an update.")
    muon_lr: float = Field(0.02, gt=0, description="Peak learning rate of the matrices (Muon).")
    adam_lr: float = Field(3e-3, gt=0, description="Peak learning rate of embeddings, norms and heads (AdamW).")
    seed: int = Field(0, description="Seed of the weights and of the documents.")


class PretrainConfig(PretrainRecipe):
    """What a pretraining process is told."""

    output: Path = Field(description="Folder for the model; figures go beside it.")
    start: Path | None = Field(None, description="Reward model only: the instruct model that it grows from.")
    samples: Path | None = Field(
        None, description="Reward model only: the policy's samples with their outcomes (JSONL)."
    )
