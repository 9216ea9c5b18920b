"""Make the nano world's two models from nothing (about an hour on two cores). They are shipped in nano/models."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.run import Run, start
from infra.manifest import Ref
from infra.models import fetch_model
from infra.steps import plan
from nano.config import PretrainRecipe
from nano.make import make_instruct, make_reward


class NanoConfig(BaseModel):
    """Parameters of the flow `nano`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruct: PretrainRecipe = PretrainRecipe()
    reward: PretrainRecipe = PretrainRecipe(tokens=8_000_000, muon_lr=0.01, adam_lr=1.5e-3, seed=1)
    export: Path | None = Field(None, description="Folder to copy both models to, e.g. nano/models.")
    dry_run: bool = Field(False, description="Print the plan and stop.")


def exported(run: Run, model: Ref, target: Path) -> None:
    """Copy a model artifact to a plain folder."""
    source = fetch_model(run.store, model, run.servers.work_dir)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("manifest.json"))


@flow
def nano(config: NanoConfig) -> None:
    """Pretrain the plain instruct model, then grow the reward model from it."""
    with start(config.dry_run) as run:
        what = plan("nano-instruct", "nano.make", config.instruct, {})
        instruct = run.do(make_instruct, what, recipe=config.instruct, servers=run.servers)
        what = plan("nano-reward", "nano.make", config.reward, {"instruct": instruct})
        reward = run.do(make_reward, what, recipe=config.reward, instruct=instruct, servers=run.servers)
        if config.export and not run.dry:
            exported(run, instruct, config.export / "instruct")
            exported(run, reward, config.export / "reward")
