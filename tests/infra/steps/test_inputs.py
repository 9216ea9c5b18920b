from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from infra.steps.inputs import artifact_parts
from infra.store.manifest import Provenance
from infra.store.tables import write_table

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def test_the_parts_are_those_of_the_manifest_in_order(store, tmp_path):
    batches = [[{"n": n} for n in range(start, start + 2)] for start in range(0, 24, 2)]
    table = write_table(store, "longcot", "k", SCHEMA, batches, Provenance(), rows_per_part=2)
    whole = store.read_bytes("longcot/k/part-00000.parquet")
    store.write_bytes("longcot/k/part-00012.parquet", whole)  # a writer that was overtaken, or a copied file
    parts = artifact_parts(store, table, tmp_path / "work")
    assert [row for part in parts for row in pq.read_table(part)["n"].to_pylist()] == list(range(24))
    assert len(parts) == 12
