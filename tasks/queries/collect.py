"""Query mining (BOLT section 3.1.2), first step: make a table of queries from the first user turns of a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, write_table
from tasks.queries.sources import Source, queries_of


@step
def collect_queries(plan: Plan, store: Store, *, source: Source) -> Ref:
    """Stream the queries of a source into a table; empty ones are dropped and counted."""
    funnel: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for row in queries_of(source):
            funnel["read"] += 1
            funnel["kept" if row["query"] else "dropped: empty"] += 1
            if row["query"]:
                yield row

    batches = batched(rows(), 1_000)
    return write_table(store, plan.step, plan.key, QUERIES, batches, plan.provenance, counts=lambda: dict(funnel))
