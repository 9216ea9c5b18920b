"""Sources of queries: files (local or on S3) and Hugging Face data sets, in the layouts of the public instruction sets.

Only the first user turn of a record is used. An error about a record names source, row and field.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.errors import BadInput
from infra.settings import Settings
from infra.steps.inputs import digest_of_files
from infra.store.store import Store
from tasks.queries.identity import query_id

Layout = Literal["column", "messages", "conversations", "alpaca"]
FIELDS: dict[Layout, str] = {"messages": "messages", "conversations": "conversations", "alpaca": "instruction"}
ENDINGS = (".jsonl", ".parquet", ".csv")
USER = ("user", "human", "prompter")  # names of the user's role in the OpenAI and ShareGPT layouts


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
        description="Layout of the records: messages (OpenAI), conversations (ShareGPT: from, value), alpaca "
        "(instruction and input), or column; if omitted, it is detected from the fields of each record.",
    )
    column: str = Field(
        "query", description="Field with the query, in the layout `column`: a text, or a list with one text per turn."
    )
    licence: str = Field("not stated", description="Licence of the source, for the manifest and the data set card.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("a source is either a path or a dataset: set exactly one of the two")
        if self.path is not None and not self.path.endswith(ENDINGS):
            raise ValueError(f"path {self.path}: expected a file name that ends in {', '.join(ENDINGS)}")
        if self.dataset is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+@[\w.-]+", self.dataset):
            raise ValueError(f"dataset {self.dataset}: expected ORG/NAME@REVISION (a revision is required)")
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
        whole: read every column of a Parquet file, not just those that rows of `queries` are made from.

    Raises:
        BadInput: the source does not exist, has no rows, or is not of the type that its name says.
        StoreError, ConnectionError: S3, or the hub, cannot be reached.
    """
    number = -1
    for number, record in enumerate(_dataset(source) if source.dataset is not None else _file(source, whole)):
        yield number, record
    if number < 0:
        raise BadInput(f"{source.place}: holds no rows: remove the source, or give one with rows")


def _file(source: Source, whole: bool) -> Iterator[dict[str, Any]]:
    with _opened(source) as file:
        if source.place.endswith(".parquet"):
            yield from _parquet(file, source, whole)
        elif source.place.endswith(".csv"):
            yield from _csv(file, source)
        else:
            yield from _json_lines(file, source)


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


def _json_lines(file: BinaryIO, source: Source) -> Iterator[dict[str, Any]]:
    for row, line in enumerate(file):
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
            raise BadInput(f"{source.place}, row {row}: not JSON ({error}): expected one object per line") from error
        if not isinstance(record, dict):
            raise BadInput(f"{source.place}, row {row}: expected a JSON object, found {type(record).__name__}")
        yield record


def _parquet(file: BinaryIO, source: Source, whole: bool) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file) as parquet:
            if parquet.metadata.num_rows:
                names = parquet.schema_arrow.names
                columns = names if whole else _query_columns(names, source, f"{source.place}, row 0")
                for batch in parquet.iter_batches(batch_size=1_000, columns=columns):
                    yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{source.place}: not a complete Parquet file ({error}): copy or write it again") from error


def _query_columns(names: list[str], source: Source, where: str) -> list[str]:
    """The columns that rows of `queries` are made from. Raises `BadInput` if none of them holds a query."""
    text_field(dict.fromkeys(names, ""), source, where)
    return [name for name in names if name in {*FIELDS.values(), *OPTIONAL, source.column, "input"}]


def _csv(file: BinaryIO, source: Source) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**27)
    try:
        rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        for row, record in enumerate(rows):
            if None in record or None in record.values():
                count = len(rows.fieldnames or [])
                raise BadInput(f"{source.place}, row {row}: expected {count} fields, as in the first line")
            given: dict[str, Any] = {name: text for name, text in record.items() if text or name not in OPTIONAL}
            if "difficulty" in given:
                given["difficulty"] = _whole_number(given["difficulty"], f"{source.place}, row {row}")
            yield given
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{source.place}: not CSV in UTF-8 ({error}): write it again, with quoted texts") from error


def _whole_number(text: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text.strip()):
        raise BadInput(f"{where}: field difficulty must be a whole number or empty, found {text[:40]!r}")
    return int(text)


def _dataset(source: Source) -> Iterator[dict[str, Any]]:
    import datasets
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = str(source.dataset).partition("@")
    try:
        rows = datasets.load_dataset(name, source.subset, split=source.split, revision=revision, streaming=True)
        for row in rows:
            yield cast(dict[str, Any], row)
    except (ConnectionError, httpx.TransportError, LocalEntryNotFoundError) as error:  # transient
        raise ConnectionError(f"{source.place}: the hub cannot be reached ({error})") from error
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise BadInput(
            f"{source.place}: no such data set or revision, or no access to it ({error}): check the name; for a gated "
            "data set, accept its terms on the hub and set HF_TOKEN"
        ) from error
    except (ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise BadInput(f"{source.place}: cannot be read ({error}): check subset and split") from error
    except httpx.HTTPError as error:
        raise BadInput(f"{source.place}: the hub refused the request ({error})") from error


# ---- one record


OPTIONAL = ("reference", "difficulty", "topic")


def text_field(record: dict[str, Any], source: Source, where: str) -> tuple[Layout, str]:
    """The layout of a record and the field that holds its query. Raises `BadInput` if it has no such field."""
    known: dict[Layout, str] = {"column": source.column, **FIELDS}
    tried = known if source.layout is None else {source.layout: known[source.layout]}
    for layout, field in tried.items():
        if record.get(field) is not None:
            return layout, field
    wanted = " or ".join(tried.values())
    raise BadInput(
        f"{where}: expected a field {wanted}, found {', '.join(map(str, record)) or 'no field'}: set `column` to the "
        "field with the query"
    )


def first_turn(record: dict[str, Any], source: Source, where: str) -> str:
    """The first user turn of a record. Raises `BadInput` naming source, row and field."""
    layout, field = text_field(record, source, where)
    if layout == "alpaca":
        instruction, given = typed(record, field, str, where), typed(record, "input", str, where)
        return f"{instruction}\n\n{given}" if given and given.strip() else str(instruction)
    if layout == "column":
        text = record[field]
        if isinstance(text, list) and text:
            text = text[0]
        return str(typed({field: text}, field, str, where))
    role, content = ("role", "content") if layout == "messages" else ("from", "value")
    for turn in typed(record, field, list, where):
        if isinstance(turn, dict) and turn.get(role) in USER:  # a later user turn is no substitute for a bad first one
            if not isinstance(turn.get(content), str):
                raise BadInput(f"{where}: field {field}: the first user turn has no string {content}")
            return encodable(turn[content], field, where)
    raise BadInput(f"{where}: field {field} has no turn with {role} '{USER[layout == 'conversations']}'")


def typed(record: dict[str, Any], field: str, kind: type, where: str) -> Any:
    """The value of an optional field. Raises `BadInput` if it is not of type `kind`."""
    value = record.get(field)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadInput(f"{where}: field {field} must be {kind.__name__} or absent, found {type(value).__name__}")
    return encodable(value, field, where) if isinstance(value, str) else value


def encodable(text: str, field: str, where: str) -> str:
    """The text, unchanged. Raises `BadInput` if a broken JSON escape left half a character (a lone surrogate) in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise BadInput(f"{where}: field {field} holds {half}, half of a character at {error.start}: fix it") from error
    return text


def first_turns(source: Source) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Row number, query and full record of each record. Raises as `records`, and `BadInput` for one without a query."""
    for row, record in records(source):
        yield row, first_turn(record, source, f"{source.place}, row {row}").strip(), record


def problems_of(source: Source) -> Iterator[dict[str, Any]]:
    """The problems of an evaluation set: only query, source and row of each. Raises as `first_turns`."""
    for row, query, _ in first_turns(source):
        if query:
            yield {"query": query, "source": source.name, "source_row": row}


def queries_of(source: Source) -> Iterator[dict[str, Any]]:
    """The source's records as rows of `queries`. Raises as `first_turns`, and `BadInput` for a bad optional field."""
    for row, query, record in first_turns(source):
        where = f"{source.place}, row {row}"
        difficulty = typed(record, "difficulty", int, where)
        if difficulty is not None and not 0 <= difficulty <= 7:
            raise BadInput(f"{where}: field difficulty must be 0 to 7, the number of criteria met, found {difficulty}")
        yield {
            "query_id": query_id(query),
            "query": query,
            "source": source.name,
            "source_row": row,
            "reference": typed(record, "reference", str, where),
            "criteria": None,
            "difficulty": difficulty,
            "topic": typed(record, "topic", str, where),
        }
