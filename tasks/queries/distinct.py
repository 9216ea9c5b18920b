"""Query mining (BOLT section 3.1.2): no duplicates and no near-duplicates.

The table is read several times: first to find the copies, then to write the rows that are kept. Memory hardly grows
with the table: 9 bytes per row (whether it is dropped, and a hash) are held in memory, MinHash signatures on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from infra.steps.progress import counted
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, scan, write_table
from tasks.queries.identity import words_and_symbols
from tasks.queries.overlap import NearDuplicates, Places

BATCH_ROWS = 5_000


def exact_copies(store: Store, tables: Sequence[Ref]) -> Places:
    """The numbers of the rows, counted through all tables, whose query id an earlier row has."""
    hashes = [
        np.array([int(each, 16) for each in batch.column("query_id").to_pylist()], np.uint64)
        for table in tables
        for batch in scan(store, table, ["query_id"])
    ]
    return np.flatnonzero(pd.Series(np.concatenate([np.zeros(0, np.uint64), *hashes])).duplicated())


@step
def drop_duplicates(plan: Plan, store: Store, *, near_duplicates: float | None, queries: Sequence[Ref]) -> Ref:
    """Write the queries of all tables without later copies of a query.

    Args:
        near_duplicates: as in `tasks.queries.clean.CleanConfig`.
        queries: cleaned queries.
    """
    total, first = sum(table.rows for table in queries), 0
    kept = np.ones(total, bool)
    kept[copies := exact_copies(store, queries)] = False
    funnel = {"read": total, "dropped: duplicate": len(copies)}
    if near_duplicates is not None:
        with TemporaryDirectory(prefix="bolt-distinct-") as folder:
            seen = NearDuplicates(Path(folder), near_duplicates, words_and_symbols)
            batches = chain.from_iterable(scan(store, table, ["query"], BATCH_ROWS) for table in queries)
            for batch in counted(plan.step, batches, total):
                left = np.flatnonzero(kept[first : first + batch.num_rows])
                texts = batch.column("query").take(left).to_pylist()
                seen.add(texts, left + first)
                first += batch.num_rows
            kept[near := seen.later()] = False
        funnel["dropped: near-duplicate"] = len(near)
    counts = {name: count for name, count in funnel.items() if count or name == "read"} | {"kept": int(kept.sum())}
    rows = compress(chain.from_iterable(read_rows(store, table) for table in queries), kept)
    return write_table(store, plan.step, plan.key, QUERIES, batched(rows), plan.provenance, counts=counts)
