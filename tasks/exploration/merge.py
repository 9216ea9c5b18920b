"""The data of a round (STILL-2): what is imitated, and all that was explored so far."""

from __future__ import annotations

from collections.abc import Sequence

from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table


@step
def merge_longcot(plan: Plan, store: Store, *, tables: Sequence[Ref]) -> Ref:
    """Write the rows of several tables `longcot` as one; `counts` has the rows of each."""
    rows = (row for table in tables for row in read_rows(store, table))
    counts = {f"{table.step}/{table.key}": table.rows for table in tables}
    return write_table(store, plan.step, plan.key, LONGCOT, batched(rows), plan.provenance, counts=counts)
