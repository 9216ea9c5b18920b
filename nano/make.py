"""The two steps that make the nano models, each a training process of its own."""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from infra.manifest import Ref
from infra.models import fetch_model, publish_model
from infra.servers import Servers
from infra.steps import Plan, step
from infra.store import Store
from infra.watchdog import GuardedProcess
from nano.config import PretrainConfig, PretrainRecipe
from nano.corpus import documents


class PretrainError(RuntimeError):
    """A pretraining process failed; the text holds its last log lines."""


def pretrained(module: str, recipe: PretrainRecipe, folder: Path, start: Path | None = None) -> dict[str, Any]:
    """Run a pretraining module; its model lies in `folder/model`. Returns the last figures that it logged.

    Raises:
        PretrainError: the process failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = PretrainConfig(**recipe.model_dump(), output=folder / "model", start=start)
    path = folder / "config.json"
    path.write_text(config.model_dump_json(indent=1))
    process = GuardedProcess([sys.executable, "-m", module, str(path)], log_path=folder / "train.log", env={"OMP_NUM_THREADS": "1"})
    try:
        status = process.wait()
    finally:
        process.stop()
    if status != 0:
        raise PretrainError(f"{module} ended with status {status}; log: {process.log_path}; its last lines:\n{process.tail()}")
    last: dict[str, Any] = json.loads((folder / "model.metrics.jsonl").read_text().splitlines()[-1])
    return last


def corpus_digest(seed: int, count: int = 1000) -> str:
    """sha256 (hex) of the first documents of the pretraining stream: what the models read, in short."""
    return hashlib.sha256("\n".join(islice(documents(seed), count)).encode()).hexdigest()


def made(plan: Plan, store: Store, folder: Path, module: str, recipe: PretrainRecipe, start: Path | None = None) -> Ref:
    """Train, say beside the model how it was made (MADE.json), publish."""
    figures = pretrained(module, recipe, folder, start)
    story = {
        "command": "python -m flows nano/make",
        "recipe": recipe.model_dump(mode="json"),
        "code": plan.provenance.code,
        "inputs": {name: ref.digest for name, ref in plan.provenance.inputs.items()},
        "corpus": corpus_digest(recipe.seed),
        "figures": figures,
    }
    (folder / "model" / "MADE.json").write_text(json.dumps(story, indent=1) + "\n")
    return publish_model(store, plan.step, plan.key, folder / "model", plan.provenance, counts=figures)


@step
def make_instruct(plan: Plan, store: Store, *, recipe: PretrainRecipe, servers: Servers) -> Ref:
    """Pretrain the plain instruct model."""
    return made(plan, store, servers.work_dir / "nano" / plan.key, "nano.pretrain", recipe)


@step
def make_reward(plan: Plan, store: Store, *, recipe: PretrainRecipe, instruct: Ref, servers: Servers) -> Ref:
    """Train the outcome reward model, grown from the instruct model."""
    start = fetch_model(store, instruct, servers.work_dir)
    return made(plan, store, servers.work_dir / "nano" / plan.key, "nano.pretrain_reward", recipe, start)
