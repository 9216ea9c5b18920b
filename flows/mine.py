"""`python -m flows mine/nano`: query mining alone (BOLT section 3.1.2)."""

from __future__ import annotations

from prefect import flow
from pydantic import Field

from flows.stages.common import ALERTS, Common
from flows.stages.mining import MineStage, mine_stage, publish_mining
from flows.stages.run import TASK_RUNNER, begin
from infra.store.manifest import Ref


class MineConfig(Common):
    """Parameters of the flow `mine`."""

    queries: MineStage = Field(description="Sources of queries, and how they are mined.")


@flow(task_runner=TASK_RUNNER, **ALERTS)
def mine(config: MineConfig) -> Ref:
    """Mine queries from public data sets and files: the table `queries`."""
    with begin(config) as run:
        queries = mine_stage(run, config.queries)
        publish_mining(run, [queries])
        return queries
