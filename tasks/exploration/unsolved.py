"""Which problems are still to be explored: those without enough right rollouts so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from tasks.exploration.gather import rollouts_of


@step
def unsolved(
    plan: Plan,
    store: Store,
    *,
    queries: Ref,
    responses: Sequence[Ref],
    scores: Sequence[Ref],
    shards: int,
    enough: int,
) -> Ref:
    """Write the queries that have fewer than `enough` right and well-formed rollouts; there may be none.

    `responses`, `scores`, `shards`: as for `rollouts_of`.
    """
    found = rollouts_of(store, responses, scores, shards)
    right = Counter(row["query_id"] for row, _, is_right in found if is_right)
    left = (row for row in read_rows(store, queries) if right[row["query_id"]] < enough)
    counts = {"queries": queries.rows, "with enough right rollouts": sum(count >= enough for count in right.values())}
    return write_table(store, plan.step, plan.key, QUERIES, batched(left), plan.provenance, counts=counts)
