from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from infra.errors import BadInput
from tasks.queries.arrow_rows import plain_rows

LATIN = pa.Array.from_buffers(pa.string(), 3, pa.array([b"one", b"\xe9t\xe9", b"two"]).buffers())
LATE = pa.array([0, 2**58, 1], pa.timestamp("us"))


@pytest.mark.parametrize("kind", [pa.table, pa.record_batch])
@pytest.mark.parametrize(
    ("column", "said"),
    [(LATIN, "UnicodeDecodeError"), (LATE, "OverflowError|ValueError")],
    ids=["not UTF-8", "too late"],
)
def test_a_value_that_python_cannot_hold_costs_its_row_alone(kind: Any, column: Any, said: str):
    first, bad, last = plain_rows(kind({"id": [1, 2, 3], "odd": column}), "q.parquet", 1_000)
    assert [row["id"] for row in (first, last)] == [1, 3]
    with pytest.raises(BadInput, match=rf"q\.parquet, row 1001: field odd cannot be read \(({said}).*: write it again"):
        raise bad


def test_an_unknown_time_zone_is_named():
    (bad,) = plain_rows(pa.table({"when": pa.array([0], pa.timestamp("us", "Mars/Phobos"))}), "q.parquet", 0)
    with pytest.raises(BadInput, match=r"q\.parquet, row 0: field when cannot be read .*Mars/Phobos"):
        raise bad
