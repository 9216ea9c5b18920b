"""Stage 2, LongCoT SFT (BOLT section 3.2): the instruct model learns to think before it answers."""

from __future__ import annotations

from pathlib import Path

from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.store import Store
from infra.training.config import SftConfig, SftRecipe
from infra.training.hosts import HERE, Hosts
from tasks.training.render import format_of, render_longcot
from tasks.training.train import OUTSIDE_KEY, check_table, train_and_publish


@step(outside_key=OUTSIDE_KEY)
def train_sft(
    plan: Plan,
    store: Store,
    *,
    config: SftRecipe,
    longcot: Ref,
    model: Ref,
    servers: Servers,
    hosts: Hosts = HERE,
) -> Ref:
    """Fine-tune `model` on the table `longcot`, in the chat template of `model`, and publish the last checkpoint.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; the message has its last log lines.
        BadInput: there are no rows; or as `render_longcot` and `train_and_publish`.
    """
    check_table(longcot, "sft")
    folder = fetch_model(store, model, servers.work_dir)

    def make_config(output: Path) -> SftConfig:
        data = render_longcot(store, longcot, folder, output.with_name("rows.parquet"))
        return SftConfig(**config.model_dump(), model=folder, data=(data,), output=output)

    format = format_of(store, longcot)
    return train_and_publish(plan, store, servers, "infra.training.sft", make_config, config, hosts, format)
