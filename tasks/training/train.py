"""A training as SFT and DPO do it: in a folder of its own; the model is published with the trainer's figures."""

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


def trained(
    plan: Plan, store: Store, servers: Servers, module: str, config: Callable[..., TrainingConfig], ranks: int
) -> Ref:
    """Free the devices, run the trainer `module` on `config(output=...)`, and publish the model that it leaves.

    Another run may have trained the same meanwhile: the model that was published first is taken. A training that was
    finished but not published (the store was away, the process was killed) is not done again.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; its last log lines are in the text, its folder stays.
    """
    servers.release()
    with attempt_folder(servers.work_dir / "training", f"{plan.step}-{plan.key}") as folder:
        model, log_path = folder / "model", folder / "train.log"
        told = config(output=model)
        if not is_finished(folder):
            with progress(plan.step, lambda: epochs_done(metrics_path(log_path)), told.epochs, "epochs"):
                launch(module, told, ranks=ranks, log_path=log_path)
            finish_attempt(folder)
        return find(store, plan.step, plan.key) or publish_model(
            store, plan.step, plan.key, model, plan.provenance, counts=report(folder)
        )


def epochs_done(metrics: Path) -> float:
    """Passes over the data so far, by the last whole line of a trainer's metrics; 0 where there is none yet."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return float(json.loads(lines[-1]).get("epoch", 0.0)) if lines else 0.0


def report(folder: Path) -> dict[str, Any]:
    """The trainer's report (written last, after the reload checks) and the logged curve of a training folder."""
    found: dict[str, Any] = json.loads(trained_path(folder / "model").read_text())
    curve = [json.loads(line) for line in metrics_path(folder / "train.log").read_text().splitlines()]
    return {**found, "curve": curve}
