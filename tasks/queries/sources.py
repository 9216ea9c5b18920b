"""Where queries come from: files (local or on S3) and Hugging Face data sets, in the layouts that the public sets have.

Only the first user turn of a record is read. A bad record is told by source, row and field.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
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

Layout = Literal["column", "messages", "conversations", "alpaca"]
FIELDS: dict[Layout, str] = {"messages": "messages", "conversations": "conversations", "alpaca": "instruction"}
ENDINGS = (".jsonl", ".parquet", ".csv")
USER = ("user", "human", "prompter")  # who asks, in OpenAI's layout and ShareGPT's


class Source(BaseModel):
    """A file or a data set of queries (or of problems): give `path` or `dataset`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(None, description="A .jsonl, .parquet or .csv file: a local path or s3://bucket/key.")
    dataset: str | None = Field(
        None, description="Hugging Face data set ORG/NAME@REVISION; a commit as revision never changes."
    )
    subset: str | None = Field(None, description="Configuration of the data set; none takes its only one.")
    split: str = Field("train", description="Split of the data set.")
    layout: Layout | None = Field(
        None,
        description="messages (OpenAI), conversations (ShareGPT: from, value), alpaca (instruction and input), or "
        "column; none tells it by each row's fields.",
    )
    column: str = Field("query", description="The field of the layout `column`: a text, or a list of texts by turn.")
    licence: str = Field("not stated", description="Licence of the source: kept in the manifest and told in the card.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("a source is either a path or a dataset: give one of the two")
        if self.path is not None and not self.path.endswith(ENDINGS):
            raise ValueError(f"path {self.path}: expected a file that ends in {', '.join(ENDINGS)}")
        if self.dataset is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+@[\w.-]+", self.dataset):
            raise ValueError(f"dataset {self.dataset}: expected ORG/NAME@REVISION (a revision is required)")
        return self

    @property
    def name(self) -> str:
        """What the column `source` says: the file's name, or the data set's."""
        return self.path.rsplit("/", 1)[-1] if self.path is not None else str(self.dataset).partition("@")[0]

    @property
    def place(self) -> str:
        """What an error calls it."""
        return self.path or ":".join(part for part in (self.dataset, self.subset, self.split) if part)

    def contents(self) -> str:
        """What changes when the source does: of a local file its content, on S3 its ETag, of a data set its revision.

        Raises:
            FileNotFoundError: there is no such file; the text names it.
            StoreError: S3 cannot be reached.
        """
        if self.dataset is not None:
            return self.place
        if self.is_local:
            return digest_of_files([Path(str(self.path))])
        folder, name = _on_s3(self)
        found = folder.stat(name)
        if found is None:
            raise FileNotFoundError(f"input file {self.path} does not exist")
        return f"{name}:{found.size}:{found.mark}"

    @property
    def is_local(self) -> bool:
        return self.path is not None and not self.path.startswith("s3://")


def records(source: Source, *, whole: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The source's records with their row numbers (from 0), streamed.

    Of a Parquet file only what queries are made of is read, or with `whole` every column.

    Raises:
        BadInput: it is not there, holds no row, or is not what its name says.
        StoreError, ConnectionError: S3, or the hub, cannot be reached.
    """
    number = -1
    for number, record in enumerate(_dataset(source) if source.dataset is not None else _file(source, whole)):
        yield number, record
    if number < 0:
        raise BadInput(f"{source.place}: holds no rows; leave the source out, or give one with rows")


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
    """The folder of a file on S3, read with the project's settings, and the file's name."""
    folder, _, name = str(source.path).rpartition("/")
    return Store.for_reading(Settings.load().model_copy(update={"store": folder})), name


def _json_lines(file: BinaryIO, source: Source) -> Iterator[dict[str, Any]]:
    for row, line in enumerate(file):
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, or nested beyond reason
            raise BadInput(f"{source.place}, row {row}: no JSON ({error}); expected one object a line") from error
        if not isinstance(record, dict):
            raise BadInput(f"{source.place}, row {row}: expected a JSON object, found {type(record).__name__}")
        yield record


def _parquet(file: BinaryIO, source: Source, whole: bool) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file) as parquet:
            if parquet.metadata.num_rows:
                names = parquet.schema_arrow.names
                columns = names if whole else _wanted(names, source, f"{source.place}, row 0")
                for batch in parquet.iter_batches(batch_size=1_000, columns=columns):
                    yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{source.place}: no whole Parquet file ({error}); copy or write it again") from error


def _wanted(names: list[str], source: Source, where: str) -> list[str]:
    """The columns to read. Raises `BadInput` where none of them holds a query."""
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
            filled: dict[str, Any] = {name: text for name, text in record.items() if text or name not in OPTIONAL}
            if "difficulty" in filled:
                filled["difficulty"] = _whole(filled["difficulty"], f"{source.place}, row {row}")
            yield filled
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{source.place}: no CSV in UTF-8 ({error}); write it again, with quoted texts") from error


def _whole(text: str, where: str) -> int:
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
    except (ConnectionError, httpx.TransportError, LocalEntryNotFoundError) as error:  # an outage: it may heal
        raise ConnectionError(f"{source.place}: the hub cannot be reached ({error})") from error
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise BadInput(
            f"{source.place}: no such data set or revision, or no access to it; check the name, and for a gated one "
            f"accept its terms on the hub and set HF_TOKEN ({error})"
        ) from error
    except (ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise BadInput(f"{source.place}: cannot be read; check subset and split ({error})") from error
    except httpx.HTTPError as error:
        raise BadInput(f"{source.place}: the hub refused ({error})") from error


# ---- one record


OPTIONAL = ("reference", "difficulty", "topic")


def text_field(record: dict[str, Any], source: Source, where: str) -> tuple[Layout, str]:
    """The layout of a record and the field that holds its query. Raises `BadInput`."""
    known: dict[Layout, str] = {"column": source.column, **FIELDS}
    tried = known if source.layout is None else {source.layout: known[source.layout]}
    for layout, field in tried.items():
        if record.get(field) is not None:
            return layout, field
    wanted = " or ".join(tried.values())
    raise BadInput(
        f"{where}: expected a field {wanted}, found {', '.join(map(str, record)) or 'no field'}; name the right one as "
        "`column`"
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
    by, said = ("role", "content") if layout == "messages" else ("from", "value")
    for turn in typed(record, field, list, where):
        if isinstance(turn, dict) and turn.get(by) in USER:  # later turns do not count, whatever is here
            if not isinstance(turn.get(said), str):
                raise BadInput(f"{where}: field {field}: the first turn of the user has no string {said}")
            return encodable(turn[said], field, where)
    raise BadInput(f"{where}: field {field} has no turn with {by} '{USER[layout == 'conversations']}'")


def typed(record: dict[str, Any], field: str, kind: type, where: str) -> Any:
    """An optional field's value. Raises `BadInput` where it has another type."""
    value = record.get(field)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadInput(f"{where}: field {field} must be {kind.__name__} or absent, found {type(value).__name__}")
    return encodable(value, field, where) if isinstance(value, str) else value


def encodable(text: str, field: str, where: str) -> str:
    """The text, if it is one. Raises `BadInput` where a JSON escape left half a character (a lone surrogate)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise BadInput(f"{where}: field {field} holds {half}, half of a character at {error.start}: mend it") from error
    return text


def normalised(query: str) -> str:
    """Unicode NFKC, case folded, white space collapsed: what makes two queries the same."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())


def query_id(query: str) -> str:
    """16 hex digits of the normalised text's sha256."""
    return hashlib.sha256(normalised(query).encode()).hexdigest()[:16]


def asked(source: Source) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The row number, the query and the whole of each record. Raises as `records`, and for a record without a query."""
    for row, record in records(source):
        yield row, first_turn(record, source, f"{source.place}, row {row}").strip(), record


def problems_of(source: Source) -> Iterator[dict[str, Any]]:
    """The problems of an evaluation set: query, source and row are all that is looked at. Raises as `asked`."""
    for row, query, _ in asked(source):
        if query:
            yield {"query": query, "source": source.name, "source_row": row}


def queries_of(source: Source) -> Iterator[dict[str, Any]]:
    """The source's rows as rows of `queries`, as they stand there. Raises as `asked`, and for a bad optional field."""
    for row, query, record in asked(source):
        where = f"{source.place}, row {row}"
        difficulty = typed(record, "difficulty", int, where)
        if difficulty is not None and not 0 <= difficulty <= 7:
            raise BadInput(f"{where}: field difficulty must be from 0 to 7, the number of criteria, found {difficulty}")
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
