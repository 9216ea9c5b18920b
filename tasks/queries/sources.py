"""Sources of queries: files (local or on S3) and Hugging Face data sets, in the layouts of the public instruction sets.

Only the first user turn of a record is used. In mining, a record without one is skipped and counted by its reason, and
so are malformed ones; if more than 1 % are malformed, that is an error, which names source, row and field.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.errors import BadInput
from infra.settings import Settings
from infra.steps.inputs import digest_of_files
from infra.store.store import Store
from infra.text.json_lines import json_lines
from tasks.queries.arrow_rows import plain_rows
from tasks.queries.fields import encodable, is_absent, is_blank, is_whole, reference_answer, typed, whole_number
from tasks.queries.hub import dataset_rows
from tasks.queries.identity import query_id
from tasks.queries.turns import NoQuery, first_user_turn, is_conversation, names_of

log = logging.getLogger(__name__)

Layout = Literal["column", "messages", "conversations", "conversation", "alpaca"]
FIELDS: dict[Layout, str] = {
    "messages": "messages",
    "conversations": "conversations",
    "conversation": "conversation",
    "alpaca": "instruction",
}
ENDINGS = (".jsonl", ".parquet", ".csv")
MALFORMED = 0.01  # share of rows that may be malformed; if there are more, the file is not what it should be


class Source(BaseModel):
    """A file or data set of queries (or of problems): set `path` or `dataset`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(None, description="A .jsonl, .parquet or .csv file: local path or s3://bucket/key.")
    dataset: str | None = Field(
        None, description="Hugging Face data set ORG/NAME@REVISION; a commit is a revision that never changes."
    )
    subset: str | None = Field(None, description="Configuration of the data set; if omitted, its only one.")
    split: str = Field("train", description="Split of the data set.")
    layout: Layout | None = Field(
        None,
        description="Layout of the records: messages (OpenAI), conversations (ShareGPT), conversation (LMSYS, "
        "WildChat), alpaca (instruction and input), or column; if omitted, it is detected from each record's fields.",
    )
    column: str = Field(
        "query",
        description="Field with the query, in the layout `column`: a text, or a list with a text or message per turn.",
    )
    topic: str = Field("topic", description="Field with the query's topic.")
    one_topic: str | None = Field(
        None, description="Topic given to every query; the records' own topics are then ignored."
    )
    difficulty: str | None = Field(
        "difficulty", description="Field with the number of the 7 criteria that the query meets. Null: none is read."
    )
    reference: str = Field("reference", description="Field with the query's reference answer: a text, or a number.")
    licence: str = Field("not stated", description="Licence of the source, for the manifest and the data set card.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("a source is either a path or a dataset: set exactly one of the two")
        if self.path is not None and not self.path.endswith(ENDINGS):
            raise ValueError(f"path {self.path}: expected a file name that ends in {', '.join(ENDINGS)}")
        if self.dataset is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+@[\w.-]+(/[\w.-]+)*", self.dataset):
            raise ValueError(
                f"dataset {self.dataset}: expected ORG/NAME@REVISION (a revision is required: a commit, a branch "
                "such as main, or refs/convert/parquet)"
            )
        return self

    @property
    def name(self) -> str:
        """The value of the column `source`: the name of the file or data set."""
        return self.path.rsplit("/", 1)[-1] if self.path is not None else str(self.dataset).partition("@")[0]

    @property
    def place(self) -> str:
        """How error messages refer to the source."""
        return self.path or ":".join(part for part in (self.dataset, self.subset, self.split) if part)

    def contents(self) -> str:
        """A string that changes when the source changes, for cache keys.

        For a local file it is a digest of the content, for a file on S3 it has the ETag, for a data set the revision.

        Raises:
            BadInput: there is no such file; the message names it.
            StoreError: S3 cannot be reached.
        """
        if self.dataset is not None:
            return self.place
        if self.is_local:
            return digest_of_files([Path(str(self.path))])
        folder, name = _on_s3(self)
        found = folder.stat(name)
        if found is None:
            raise BadInput(f"input file {self.path} does not exist")
        return f"{name}:{found.size}:{found.mark}"

    @property
    def is_local(self) -> bool:
        return self.path is not None and not self.path.startswith("s3://")


def records(source: Source, *, whole: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream the source's records, each with its row number (from 0).

    Args:
        whole: read every column of a table, not just those that rows of `queries` are made from.

    Raises:
        BadInput: the source does not exist, has no rows, or is not of the type that its name says.
        StoreError, ConnectionError: S3, or the hub, cannot be reached.
    """
    for row, record in records_or_faults(source, whole=whole):
        if isinstance(record, BadInput):
            raise record
        yield row, record


def records_or_faults(source: Source, *, whole: bool = False) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    """As `records`, but with the error about a malformed row in its place."""
    found: Iterator[dict[str, Any] | BadInput] = (
        dataset_rows(source.dataset, source.subset, source.split, partial(_columns, source, whole))
        if source.dataset
        else _file(source, whole)
    )
    row = -1
    for row, record in enumerate(found):
        yield row, record
    if row < 0:
        raise BadInput(f"{source.place}: holds no rows: remove the source, or give one with rows")


def _file(source: Source, whole: bool) -> Iterator[dict[str, Any] | BadInput]:
    with _opened(source) as file:
        if source.place.endswith(".parquet"):
            yield from _parquet(file, source, whole)
        elif source.place.endswith(".csv"):
            yield from _csv(file, source, whole)
        else:
            yield from json_lines(file, source.place)


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    if source.is_local:
        path = Path(str(source.path))
        if not path.is_file():
            raise BadInput(f"query file {path} does not exist")
        with path.open("rb") as file:
            yield file
    else:
        folder, name = _on_s3(source)
        if not folder.exists(name):
            raise BadInput(f"query file {source.path} does not exist")
        with folder.open_read(name) as file:
            yield file


def _on_s3(source: Source) -> tuple[Store, str]:
    """The folder of a file on S3, opened with the project's settings, and the file's name."""
    folder, _, name = str(source.path).rpartition("/")
    return Store.for_reading(Settings.load().model_copy(update={"store": folder})), name


def _parquet(file: BinaryIO, source: Source, whole: bool) -> Iterator[dict[str, Any] | BadInput]:
    try:
        with pq.ParquetFile(file) as parquet:
            if parquet.metadata.num_rows:
                columns, first = _columns(source, whole, parquet.schema_arrow.names), 0
                for batch in parquet.iter_batches(batch_size=1_000, columns=columns):
                    yield from plain_rows(batch, source.place, first)
                    first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{source.place}: not a complete Parquet file ({error}): copy or write it again") from error


def _columns(source: Source, whole: bool, names: Sequence[str]) -> list[str]:
    """The columns to read: all if `whole`, otherwise those that rows of `queries` are made from.

    Raises:
        BadInput: none of them holds a query, or two have the same name.
    """
    if not whole:
        text_field(dict.fromkeys(names, ""), source, f"{source.place}, row 0")
    read = [name for name in names if whole or name in {*FIELDS.values(), *OPTIONAL, *_own(source)}]
    if twice := [name for name, count in Counter(read).items() if count > 1]:
        raise BadInput(f"{source.place}: expected one column {twice[0]}, found several: rename or remove the others")
    return read


def _own(source: Source) -> set[str]:
    """The fields that the source names, and the alpaca layout's."""
    return {source.column, source.topic, source.reference, "input"}


def _csv(file: BinaryIO, source: Source, whole: bool) -> Iterator[dict[str, Any] | BadInput]:
    csv.field_size_limit(2**27)
    try:
        # A byte that is not UTF-8 becomes half a character, so that only its row is malformed.
        text_file = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.DictReader(text_file, strict=True)
        if not is_whole("".join(rows.fieldnames or [])):
            raise BadInput(f"{source.place}: not CSV in UTF-8 (its first line is not): write the file again as UTF-8")
        for row, record in enumerate(rows):
            where = f"{source.place}, row {row}"
            if row == 0:
                _columns(source, whole, rows.fieldnames or [])
            if odd := [name for name, text in record.items() if isinstance(text, str) and not is_whole(text)]:
                yield BadInput(f"{where}: field {odd[0]} is not UTF-8: write the file again as UTF-8")
                continue
            if None in record or None in record.values():
                yield BadInput(f"{where}: expected {len(rows.fieldnames or [])} fields, as in the first line")
                continue
            given: dict[str, Any] = {
                name: text
                for name, text in record.items()
                if text or name not in {*OPTIONAL, source.topic, source.reference}
            }
            numbers = {name: given[name].strip() for name in NUMBERS if name in given}
            odd = [name for name, text in numbers.items() if not re.fullmatch(r"\d{1,9}(\.0*)?|(?i:nan)", text)]
            if odd:
                found = numbers[odd[0]][:40]
                yield BadInput(f"{where}: field {odd[0]} must be a whole number or empty, found {found!r}")
                continue
            yield given | {name: float(text) for name, text in numbers.items()}
    except csv.Error as error:
        raise BadInput(f"{source.place}: not CSV in UTF-8 ({error}): write it again, with quoted texts") from error


# ---- one record


OPTIONAL = ("reference", "difficulty", "topic", "step_count")
NUMBERS = ("difficulty", "step_count")


def text_field(record: dict[str, Any], source: Source, where: str) -> tuple[Layout, str]:
    """The layout of a record and the field that holds its query: the first that is not empty.

    Raises:
        NoQuery: the field holds nothing.
        BadInput: there is no such field.
    """
    known: dict[Layout, str] = {"column": source.column, **FIELDS}
    tried = known if source.layout is None else {source.layout: known[source.layout]}
    held = [(layout, field) for layout, field in tried.items() if not is_absent(record.get(field))]
    if held:
        return next((each for each in held if not is_blank(record[each[1]])), held[0])
    if any(field in record for field in tried.values()):
        raise NoQuery("empty")
    wanted = " or ".join(tried.values())
    raise BadInput(
        f"{where}: expected a field {wanted}, found {names_of(record) or 'no field'}: set `column` to the "
        "field with the query"
    )


def first_turn(record: dict[str, Any], source: Source, where: str) -> str:
    """The first user turn of a record, stripped.

    Raises:
        NoQuery: there is none that can be used.
        BadInput: the record is malformed; source, row and field are named.
    """
    layout, field = text_field(record, source, where)
    value = record[field]
    if layout == "alpaca":
        text, given = typed(record, field, str, where), typed(record, "input", str, where)
        text = f"{text}\n\n{given}" if given and given.strip() else text
    elif layout != "column" or is_conversation(value):
        text = encodable(first_user_turn(value, field, where), field, where)
    elif isinstance(value, list):
        text = typed({field: value[0] if value else None}, field, str, where)
    else:
        text = typed(record, field, str, where)
    if not text or not text.strip():
        raise NoQuery("empty")
    return str(text.strip())


def difficulty_of(record: dict[str, Any], source: Source, where: str) -> int | None:
    """The number of criteria that a query meets. Raises `BadInput` if the field holds anything else."""
    if source.difficulty is None:
        return None
    try:
        return whole_number(record, source.difficulty, where, 7, "the number of criteria met")
    except BadInput as fault:
        raise BadInput(f"{fault}; if it is another scale, set the source's `difficulty` to null") from fault


class Skipped:
    """The rows of a source that are passed over, counted by reason."""

    def __init__(self, place: str) -> None:
        """`place` is how error messages refer to the source."""
        self.place, self.reasons = place, Counter[str]()
        self._first: BadInput | None = None

    def malformed(self, fault: BadInput, row: int) -> None:
        """Count a malformed row; the first is logged. Raises `BadInput` if, after 10,000 rows, there are too many."""
        if self._first is None:
            log.warning("skipped: %s", fault)
            self._first = fault
        self.reasons["malformed"] += 1
        if row >= 10_000:
            self.refuse_many(row + 1)

    def check(self, read: int) -> None:
        """Raise `BadInput` if, of all rows, too many are malformed or none is left."""
        self.refuse_many(read)
        if self.reasons.total() == read:
            why = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
            raise BadInput(
                f"{self.place}: none of its {read} rows has a query ({why}): set `layout` or `column` to where they "
                "are, or remove the source"
            )

    def refuse_many(self, read: int) -> None:
        """Raise `BadInput` if, of all rows `read` so far, too many are malformed."""
        bad = self.reasons["malformed"]
        if self._first is not None and bad > MALFORMED * read:
            more = f" ({bad} of {read} rows are malformed; up to {MALFORMED:.0%} are skipped)" if bad > 1 else ""
            raise BadInput(f"{self._first}{more}") from self._first


def problems_of(source: Source, skipped: Skipped | None = None) -> Iterator[dict[str, Any]]:
    """The problems of an evaluation set: only query, source and row of each. `skipped` counts records without a query.

    Raises as `records`, and `BadInput` for a malformed row, or if no record has a query.
    """
    skipped, row = skipped or Skipped(source.place), 0
    for row, record in records(source):
        try:
            query = first_turn(record, source, f"{source.place}, row {row}")
        except NoQuery as reason:
            skipped.reasons[str(reason)] += 1
        else:
            yield {"query": query, "source": source.name, "source_row": row}
    skipped.check(row + 1)


def queries_of(source: Source, skipped: Skipped | None = None) -> Iterator[dict[str, Any]]:
    """The source's records that have a query as rows of `queries`.

    `skipped` counts the others. Without it, a malformed row is an error.

    Raises as `records`, and `BadInput` for a malformed row, a bad optional field included.
    """
    for row, record in records_or_faults(source):
        where = f"{source.place}, row {row}"
        try:
            if isinstance(record, BadInput):
                raise record
            query = first_turn(record, source, where)
            optional = {
                "reference": reference_answer(record, source.reference, where),
                "criteria": None,
                "difficulty": difficulty_of(record, source, where),
                "topic": source.one_topic or typed(record, source.topic, str, where),
                "step_count": whole_number(record, "step_count", where, 10**6, "the number of steps of a solution"),
            }
        except NoQuery as reason:
            if skipped:
                skipped.reasons[str(reason)] += 1
        except BadInput as fault:
            if skipped is None:
                raise
            skipped.malformed(fault, row)
        else:
            yield {
                "query_id": query_id(query),
                "query": query,
                "source": source.name,
                "source_row": row,
                **optional,
            }
