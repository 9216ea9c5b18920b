"""What SFT and DPO share: run a trainer in a folder of its own and publish the model with the trainer's figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.processes.torchrun import attempt_folder, finish_attempt, is_finished, launch, metrics_path
from infra.serving.servers import Servers
from infra.steps.progress import progress
from infra.steps.step import Plan
from infra.store.manifest import Ref
from infra.store.models import publish_model
from infra.store.parts import find
from infra.store.store import Store
from infra.training.config import TrainingConfig, trained_path


def train_and_publish(
    plan: Plan, store: Store, servers: Servers, module: str, make_config: Callable[..., TrainingConfig], ranks: int
) -> Ref:
    """Free the devices, run the trainer `module` on `make_config(output=...)`, and publish the model that it wrote.

    If another run published the same artifact in the meantime, that model is returned. A training that finished but
    was not published (the store was unreachable, the process was killed) is not repeated.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; the message has its last log lines, its folder stays.
    """
    servers.release()
    with attempt_folder(servers.work_dir / "training", f"{plan.step}-{plan.key}") as folder:
        model, log_path = folder / "model", folder / "train.log"
        config = make_config(output=model)
        if not is_finished(folder):
            with progress(plan.step, lambda: epochs_done(metrics_path(log_path)), config.epochs, "epochs"):
                launch(module, config, ranks=ranks, log_path=log_path)
            finish_attempt(folder)
        return find(store, plan.step, plan.key) or publish_model(
            store, plan.step, plan.key, model, plan.provenance, counts=training_report(folder)
        )


def epochs_done(metrics: Path) -> float:
    """Passes over the data so far, from the last complete line of a trainer's metrics; 0 if there is none yet."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return float(json.loads(lines[-1]).get("epoch", 0.0)) if lines else 0.0


def training_report(folder: Path) -> dict[str, Any]:
    """The trainer's report (written last, after the reload checks) and its logged curve, from a training folder."""
    found: dict[str, Any] = json.loads(trained_path(folder / "model").read_text())
    curve = [json.loads(line) for line in metrics_path(folder / "train.log").read_text().splitlines()]
    return {**found, "curve": curve}
