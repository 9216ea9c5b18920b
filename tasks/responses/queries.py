"""What a step needs to know of the queries that the responses of its shard answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import read_rows, scan_shard


def column_of_queries(
    store: Store, queries: Ref, column: str, responses: Sequence[Ref], shard: int = 0, shards: int = 1
) -> dict[str, Any]:
    """A column of those queries that the responses of a shard answer, by query id. Other queries take no memory."""
    ids = {
        query_id
        for batch in scan_shard(store, responses, shard, shards, ["query_id"])
        for query_id in batch.column("query_id").to_pylist()
    }
    rows = read_rows(store, queries, ["query_id", column])
    return {row["query_id"]: row[column] for row in rows if row["query_id"] in ids}
