"""Tables: streams of rows in Parquet parts with a manifest. Memory is bounded by a row group, not by the table."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from numbers import Integral
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from infra.processes.watchdog import refuse_when_ending
from infra.store.manifest import Column, Counts, Part, Provenance, Ref, begin, expect, finish
from infra.store.parts import open_part
from infra.store.store import Store

GROUP_ROWS = 4096  # rows per row group; fixed, so that the same rows give the same bytes however they arrive

Batch: TypeAlias = pa.RecordBatch | pa.Table | list[dict[str, Any]]


class RowError(ValueError):
    """A row does not fit its table's schema; the message names table, column, row and expected type."""


def write_table(
    store: Store,
    step: str,
    key: str,
    schema: pa.Schema,
    batches: Iterable[Batch],
    provenance: Provenance,
    rows_per_part: int = 100_000,
    counts: Counts = None,
) -> Ref:
    """Write the table `step/key` as a stream, and its manifest last. A failure leaves no table.

    Args:
        schema: names, types and nullability that every row must have; values are never cast silently.
        batches: rows in order, in batches of any size; the same rows give the same digest however they are batched.
        rows_per_part: rows per Parquet file.
        counts: figures for the manifest, such as a filter's funnel; a function is called after the last row.

    Raises:
        RowError: a row does not fit the schema.
        StoreError: the store fails.
    """
    name, schema = f"{step}/{key}", schema.remove_metadata()
    if rows_per_part < 1:
        raise ValueError(f"table {name}: rows_per_part must be at least 1, not {rows_per_part}")
    started = begin(store, step, key)
    groups = _row_groups(_conforming(batches, schema, name), schema, rows_per_part)
    parts = [
        _write_part(store, f"part-{number:05d}.parquet", name, schema, (group for _, group in numbered))
        for number, numbered in groupby(groups, key=lambda pair: pair[0])
    ]
    columns = [Column(name=field.name, type=str(field.type), nullable=field.nullable) for field in schema]
    return finish(store, "table", step, key, columns, parts, provenance, counts, started)


def scan(
    store: Store, ref: Ref, columns: Sequence[str] | None = None, batch_rows: int = 10_000
) -> Iterator[pa.RecordBatch]:
    """Read a table in order, at most `batch_rows` rows at a time. Each part is verified before its first row.

    Raises:
        BadArtifact: the table is gone, was made again with other rows, or a part differs from what was written.
        ValueError: the table lacks one of the columns.
    """
    manifest = expect(store, ref)
    names = [column.name for column in manifest.columns]
    if missing := [name for name in columns or [] if name not in names]:
        raise ValueError(f"table {manifest.folder} has no column {', '.join(missing)}; it has {', '.join(names)}")
    for part in manifest.parts:
        with open_part(store, manifest, part) as file, pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(batch_size=batch_rows, columns=None if columns is None else list(columns))


def shard_range(refs: Sequence[Ref], shard: int, shards: int) -> range:
    """The rows of a shard, counted through all tables: one of `shards` runs of about equal length, counted from 0."""
    total = sum(ref.rows for ref in refs)
    return range(total * shard // shards, total * (shard + 1) // shards)


def scan_shard(
    store: Store,
    refs: Sequence[Ref],
    shard: int,
    shards: int,
    columns: Sequence[str] | None = None,
    batch_rows: int = 10_000,
) -> Iterator[pa.RecordBatch]:
    """Read the rows of a shard (see `shard_range`) in order. Raises as `scan`."""
    rows, place = shard_range(refs, shard, shards), 0
    for ref in refs:
        if place + ref.rows <= rows.start or place >= rows.stop:  # nothing of it is in the shard
            place += ref.rows
            continue
        for batch in scan(store, ref, columns, batch_rows):
            start, stop = max(rows.start - place, 0), min(rows.stop - place, batch.num_rows)
            if start < stop:
                yield batch.slice(start, stop - start)
            place += batch.num_rows


def read_rows(store: Store, ref: Ref, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Stream a table's rows in order, as dicts. Raises as `scan`."""
    for batch in scan(store, ref, columns, batch_rows=1_000):
        yield from batch.to_pylist()


def batched(rows: Iterable[dict[str, Any]], size: int = 250) -> Iterator[list[dict[str, Any]]]:
    """Batch a stream of rows for `write_table`."""
    stream = iter(rows)
    while batch := list(islice(stream, size)):
        yield batch


def read_table(store: Store, ref: Ref, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole table into memory; for small tables. Raises as `scan`."""
    batches = list(scan(store, ref, columns))
    if batches:
        return pa.Table.from_batches(batches)
    manifest = expect(store, ref)
    with open_part(store, manifest, manifest.parts[0]) as file:
        empty = pq.read_schema(file).remove_metadata().empty_table()
    return empty if columns is None else empty.select(list(columns))


def _write_part(store: Store, part: str, name: str, schema: pa.Schema, groups: Iterable[pa.Table]) -> Part:
    rows = 0
    with store.open_write(f"{name}/{part}") as sink:
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for group in groups:
                writer.write_table(group, row_group_size=GROUP_ROWS)
                rows += group.num_rows
        return Part(path=part, rows=rows, bytes=sink.size, sha256=sink.sha256())


def _row_groups(tables: Iterable[pa.Table], schema: pa.Schema, rows_per_part: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows as row groups of fixed size, each with its part's number; a table without rows gives one empty group."""
    pending: list[pa.Table] = []
    held, cut = 0, 0  # rows pending, rows given out
    for table in tables:
        pending.append(table)
        held += table.num_rows
        while held >= (want := min(GROUP_ROWS, rows_per_part - cut % rows_per_part)):
            rows = pa.concat_tables(pending)
            yield cut // rows_per_part, rows.slice(0, want).combine_chunks()
            pending, held, cut = [rows.slice(want)], held - want, cut + want
    if held or not cut:
        yield cut // rows_per_part, pa.concat_tables([schema.empty_table(), *pending]).combine_chunks()


def _conforming(batches: Iterable[Batch], schema: pa.Schema, name: str) -> Iterator[pa.Table]:
    """Each batch as a table of exactly `schema`. Raises `RowError`."""
    first = 0
    for batch in batches:
        if isinstance(batch, list):
            columns = _from_rows(batch, schema, name, first)
        else:
            columns = _from_arrow(batch, schema, name, first)
        for field, column in zip(schema, columns, strict=True):
            if not field.nullable and column.null_count:
                row = column.is_null().to_pylist().index(True)
                raise _misfit(name, field, first + row, "found none")
        refuse_when_ending()
        table = pa.Table.from_arrays(columns, schema=schema)
        yield table
        first += table.num_rows


def _from_rows(rows: list[dict[str, Any]], schema: pa.Schema, name: str, first: int) -> list[pa.Array]:
    known = set(schema.names)
    for number, row in enumerate(rows, first):
        if unknown := row.keys() - known:
            raise RowError(f"table {name}, row {number}: unknown column {', '.join(sorted(map(str, unknown)))}")
    return [_column([row.get(field.name) for row in rows], field, name, first) for field in schema]


def _column(values: list[Any], field: pa.Field, name: str, first: int) -> pa.Array:
    try:
        if not _loose(values, field.type):
            return pa.array(values, field.type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        pass  # the misfitting value is found below
    for number, value in enumerate(values, first):
        try:
            pa.array([value], field.type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise _misfit(name, field, number, f"found {_shown(value)} ({error})") from None
        if _loose([value], field.type):
            raise _misfit(name, field, number, f"found {_shown(value)}")
    raise RowError(f"table {name}, column {field.name}: the values do not fit {field.type}")


def _loose(values: Iterable[Any], kind: pa.DataType) -> bool:
    """Whether pyarrow would accept a value but change it: 1.5 to 1, true to 1.0, "abc" to its letters."""
    types = {type(value) for value in values} - {type(None)}
    if pa.types.is_list(kind):
        if any(issubclass(each, str | bytes) for each in types):
            return True
        return _loose((item for value in values if value is not None for item in value), kind.value_type)
    if pa.types.is_integer(kind):
        return not all(issubclass(each, Integral) for each in types)
    if pa.types.is_string(kind):
        return not all(issubclass(each, str) for each in types)
    return pa.types.is_floating(kind) and bool in types


def _from_arrow(batch: pa.RecordBatch | pa.Table, schema: pa.Schema, name: str, first: int) -> list[Any]:
    if sorted(batch.schema.names) != sorted(schema.names):
        raise RowError(
            f"table {name}, rows from {first}: expected the columns {', '.join(schema.names)}, "
            f"found {', '.join(batch.schema.names)}"
        )
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if pa.types.is_null(column.type):
            column = column.cast(field.type)
        if column.type != field.type:
            raise _misfit(name, field, first, f"found a column of {column.type}")
        columns.append(column)
    return columns


def _misfit(name: str, field: pa.Field, row: int, found: str) -> RowError:
    null = "or null" if field.nullable else "not null"
    return RowError(f"table {name}, column {field.name}, row {row}: expected {field.type} {null}, {found}")


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {reprlib.repr(value)}"
