"""Stage 3, one iteration of online DPO (BOLT section 3.3); the reference policy pi_0 is always the SFT model."""

from __future__ import annotations

from functools import partial

from pydantic import Field

from infra.serving.servers import Servers
from infra.steps.inputs import artifact_parts
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.store import Store
from infra.training.config import DpoConfig, DpoRecipe
from tasks.training.train import OUTSIDE_KEY, train_and_publish


class DpoStage(DpoRecipe, frozen=True):
    """DPO's settings; the defaults are the paper's."""

    ranks: int = Field(8, ge=1, description="Number of training processes, one per GPU (BOLT: 8 for 7B and 8B).")


@step(outside_key=OUTSIDE_KEY)
def train_dpo(
    plan: Plan, store: Store, *, config: DpoStage, pairs: Ref, policy: Ref, reference: Ref, servers: Servers
) -> Ref:
    """Train `policy` on the table `pairs` with the fixed `reference` policy and publish the resulting model.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; the message has its last log lines.
    """
    make_config = partial(
        DpoConfig,
        **config.model_dump(exclude={"ranks"}),
        model=fetch_model(store, policy, servers.work_dir),
        reference=fetch_model(store, reference, servers.work_dir),
        data=artifact_parts(store, pairs, servers.work_dir),
    )
    return train_and_publish(plan, store, servers, "infra.training.dpo", make_config, config.ranks)
