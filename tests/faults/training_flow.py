"""Train as the steps do, in a process that can be killed: `training_flow.py CONFIG.json METHOD RANKS STORE`."""

from __future__ import annotations

import sys
from pathlib import Path

from infra.settings import Settings
from infra.steps.step import Plan
from infra.store.manifest import Provenance
from infra.store.store import Store
from infra.training.config import DpoConfig, SftConfig
from tasks.training.train import train


def main(path: Path, method: str, ranks: int, store: str) -> None:
    config = (SftConfig if method == "sft" else DpoConfig).model_validate_json(path.read_text())
    plan = Plan(step=method, key="k", provenance=Provenance())
    opened = Store.open(Settings(store=store))
    train(plan, opened, f"infra.training.{method}", config, ranks, path.with_name("train.log"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
