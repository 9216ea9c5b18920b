"""Configurations of the two nano models' training; the training processes read them."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field


class PretrainRecipe(BaseModel, frozen=True, extra="forbid"):
    """Settings of one nano training run, for either model; only the data differ."""

    tokens: int = Field(13_000_000, ge=1, description="Number of training tokens.")
    row_tokens: int = Field(768, ge=1, description="Tokens per row.")
    rows_per_step: int = Field(8, ge=1, description="Rows per update.")
    muon_lr: float = Field(0.02, gt=0, description="Peak learning rate of the weight matrices (Muon).")
    adam_lr: float = Field(3e-3, gt=0, description="Peak learning rate of embeddings, norms and heads (AdamW).")
    seed: int = Field(0, description="Seed of the initial weights and of the documents.")


class PretrainConfig(PretrainRecipe):
    """What a pretraining process reads: a recipe, and paths."""

    layers: int = Field(4, ge=1, description="Instruct model only: number of layers.")
    width: int = Field(192, ge=64, multiple_of=64, description="Instruct model only: width; a head has 64.")
    chats: bool = Field(True, description="Instruct model only: whether documents are chats; false makes a base model.")
    output: Path = Field(description="Folder for the model; its metrics are written beside it.")
    start: Path | None = Field(None, description="Reward model only: the instruct model that it grows from.")
    samples: Path | None = Field(
        None, description="Reward model only: the instruct model's samples with their outcomes (JSONL)."
    )
