"""Stage 2, LongCoT SFT (BOLT section 3.2): the instruct model learns to think before it answers."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.store import Store
from infra.training.config import SftConfig, SftRecipe
from tasks.training.render import render_longcot
from tasks.training.train import OUTSIDE_KEY, train_and_publish


class SftStage(SftRecipe, frozen=True):
    """Stage 2's settings; the defaults are the paper's."""

    ranks: int = Field(8, ge=1, description="Number of training processes, one per GPU (BOLT: 8 for 7B and 8B).")


@step(outside_key=OUTSIDE_KEY)
def train_sft(plan: Plan, store: Store, *, config: SftStage, longcot: Ref, model: Ref, servers: Servers) -> Ref:
    """Fine-tune `model` on the table `longcot`, in the chat template of `model`, and publish the last checkpoint.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; the message has its last log lines.
    """
    folder = fetch_model(store, model, servers.work_dir)

    def make_config(output: Path) -> SftConfig:
        data = render_longcot(store, longcot, folder, output.with_name("rows.parquet"))
        return SftConfig(**config.model_dump(exclude={"ranks"}), model=folder, data=(data,), output=output)

    return train_and_publish(plan, store, servers, "infra.training.sft", make_config, config.ranks)
