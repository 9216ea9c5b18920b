"""Train as the steps do, in a process that can be killed: `training_flow.py CONFIG.json MODULE RANKS STORE [HOSTS]`.

HOSTS are those of several machines, as JSON. They share the folder above that of CONFIG.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from infra.settings import Settings
from infra.steps.step import Plan
from infra.store.manifest import Provenance
from infra.store.store import Store
from infra.training.config import DpoConfig, RlConfig, SftConfig
from infra.training.hosts import Hosts
from tasks.training.on_policy_config import OnPolicyConfig
from tasks.training.train import train

CONFIGS = {
    "infra.training.sft": SftConfig,
    "infra.training.dpo": DpoConfig,
    "infra.training.rl": RlConfig,
    "tasks.training.on_policy_trainer": OnPolicyConfig,
}


def main(path: Path, module: str, ranks: int, store: str, hosts: str = "{}") -> None:
    config = CONFIGS[module].model_validate_json(path.read_text())
    plan = Plan(step=module.rpartition(".")[2], key="k", provenance=Provenance())
    opened = Store.open(Settings(store=store))
    train(
        plan,
        opened,
        module,
        config,
        ranks,
        path.with_name("train.log"),
        Hosts.model_validate_json(hosts),
        path.parents[1],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
