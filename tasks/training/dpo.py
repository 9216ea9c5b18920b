"""Stage 3, one iteration of online DPO (BOLT section 3.3); the reference policy pi_0 is always the SFT model.

This is the step. The trainer, with the loss and its beta, is `infra/training/dpo.py`.
"""

from __future__ import annotations

from functools import partial

from infra.serving.servers import Servers
from infra.steps.inputs import artifact_parts
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.training.config import DpoConfig, DpoRecipe
from infra.training.hosts import HERE, Hosts
from tasks.training.train import OUTSIDE_KEY, check_table, format_in, policies, train_and_publish


@step(outside_key=OUTSIDE_KEY)
def train_dpo(
    plan: Plan,
    store: Store,
    *,
    config: DpoRecipe,
    pairs: Ref,
    policy: Ref,
    reference: Ref,
    servers: Servers,
    hosts: Hosts = HERE,
) -> Ref:
    """Train `policy` on the table `pairs` with the fixed `reference` policy and publish the resulting model.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; the message has its last log lines.
        BadInput: there are no pairs; the reference has another vocabulary; or as `train_and_publish`.
    """
    check_table(pairs, "dpo")
    model, fixed = policies(store, servers, policy, reference)
    make_config = partial(
        DpoConfig,
        **config.model_dump(),
        model=model,
        reference=fixed,
        data=artifact_parts(store, pairs, servers.work_dir),
    )
    format = format_in(store, pairs, "chosen")
    return train_and_publish(plan, store, servers, "infra.training.dpo", make_config, config, hosts, format)
