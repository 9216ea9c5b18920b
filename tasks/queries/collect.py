"""Query mining (BOLT section 3.1.2), first step: make a table of queries from the first user turns of a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, write_table
from tasks.queries.sources import Skipped, Source, queries_of


@step
def collect_queries(plan: Plan, store: Store, *, source: Source) -> Ref:
    """Stream the queries of a source into a table; rows without one are dropped and counted by reason.

    Raises:
        BadInput: the source cannot be read, more than 1 % of its rows are malformed, or none has a query.
        StoreError, ConnectionError: S3, or the hub, cannot be reached.
    """
    skipped, kept = Skipped(source.place), 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal kept
        for row in queries_of(source, skipped):
            kept += 1
            yield row
        skipped.check(kept + skipped.reasons.total())

    def funnel() -> dict[str, int]:
        dropped = {f"dropped: {reason}": count for reason, count in skipped.reasons.items()}
        return {"read": kept + skipped.reasons.total(), **dropped, "kept": kept}

    return write_table(store, plan.step, plan.key, QUERIES, batched(rows(), 1_000), plan.provenance, counts=funnel)
