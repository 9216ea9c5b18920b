"""Rows of Arrow tables (Parquet files, data sets of the hub) as Python objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from infra.errors import BadInput

UNREADABLE = (ValueError, OverflowError, KeyError)  # not UTF-8; a time after the year 9999; an unknown time zone


def plain_rows(table: pa.Table | pa.RecordBatch, place: str, first: int) -> Iterator[dict[str, Any] | BadInput]:
    """The table's rows; in place of a row with a value that Python cannot hold, the error that says so.

    `place` names the file or data set in errors, and `first` is the number of the table's first row in it.
    """
    try:
        rows: list[dict[str, Any] | BadInput] = table.to_pylist()
    except UNREADABLE:
        rows = [_row(table.slice(n, 1), f"{place}, row {first + n}") for n in range(table.num_rows)]
    yield from rows


def _row(table: pa.Table | pa.RecordBatch, where: str) -> dict[str, Any] | BadInput:
    row = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except UNREADABLE as error:
            said = f"{type(error).__name__}: {error}"
            return BadInput(
                f"{where}: field {name} cannot be read ({said}): expected text in UTF-8, times up to the year 9999 and "
                "known time zones: write it again, or leave the field out"
            )
    return row
