"""Train as the steps do, in a process that can be killed: `training_flow.py CONFIG.json METHOD RANKS STORE [HOSTS]`.

HOSTS are those of several machines, as JSON. They share the folder above that of CONFIG.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infra.settings import Settings
from infra.steps.step import Plan
from infra.store.manifest import Provenance
from infra.store.store import Store
from infra.training.config import DpoConfig, SftConfig
from infra.training.hosts import Hosts
from tasks.training.train import train


def main(path: Path, method: str, ranks: int, store: str, hosts: str = "{}") -> None:
    config = (SftConfig if method == "sft" else DpoConfig).model_validate_json(path.read_text())
    plan = Plan(step=method, key="k", provenance=Provenance())
    opened = Store.open(Settings(store=store))
    train(
        plan,
        opened,
        f"infra.training.{method}",
        config,
        ranks,
        path.with_name("train.log"),
        Hosts.model_validate_json(hosts),
        path.parents[1],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
