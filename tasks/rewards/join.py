"""One table of scores from the shards that they were made in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from infra.steps.step import Plan, step
from infra.store.manifest import Ref, expect
from infra.store.schemas import SCORES
from infra.store.store import Store
from infra.store.tables import scan, write_table


@step
def join_scores(plan: Plan, store: Store, *, rewards: Sequence[Ref]) -> Ref:
    """Write the table `scores`: the rows of all shards of `tasks.rewards.score.score`, whose counts are added up."""
    counts: Counter[str] = Counter()
    for table in rewards:
        counts.update(expect(store, table).counts)
    batches = chain.from_iterable(scan(store, table) for table in rewards)
    return write_table(store, plan.step, plan.key, SCORES, batches, plan.provenance, counts=dict(counts))
