"""How the two nano models are made: plain configurations, read by the training processes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class PretrainConfig(BaseModel):
    """One nano training run. Both models share the shape of the run; only the data differs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: Path
    tokens: int = Field(14_000_000, description="tokens read in all")
    row_tokens: int = Field(768, description="tokens a row")
    rows_per_step: int = Field(8, description="rows an update")
    muon_lr: float = Field(0.02, description="learning rate of the matrices (Muon)")
    adam_lr: float = Field(3e-3, description="learning rate of embeddings and norms (AdamW)")
    start: Path | None = Field(None, description="reward model only: the instruct model that it grows from")
    seed: int = 0
