"""Query mining (BOLT section 3.1.2): first turns only, no duplicates, nothing held out, hard enough, sub-sampled.

The difficulty is the number of the seven yes/no criteria that a query meets, as its source states it.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from infra.manifest import Ref
from infra.schemas import QUERIES
from infra.steps import Plan, step
from infra.store import Store
from infra.tables import write_table
from tasks.curate_examples import BadInput


class QueriesConfig(BaseModel):
    """Which queries are taken from a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(
        description="JSONL file: `query` or `messages` (OpenAI layout); optional reference, difficulty, topic."
    )
    held_out: tuple[Path, ...] = Field((), description="JSONL files whose queries must not be mined (evaluation sets).")
    least_difficulty: int = Field(5, ge=0, le=7, description="Fewest of the 7 criteria that a query meets (BOLT: 5).")
    limit: int | None = Field(None, ge=1, description="Queries kept at most, drawn by a seeded hash; none keeps all.")
    skip: int = Field(0, ge=0, description="Queries passed over in the drawn order, so that two draws share none.")
    seed: int = Field(0, description="Seed of the draw.")
    least_queries: int = Field(1, ge=1, description="Queries that must be left after all this; fewer are an error.")

    def without(self, path: Path) -> Self:
        """The same, minus the queries of another file."""
        return self if path in self.held_out else self.model_copy(update={"held_out": (*self.held_out, path)})


def normalised(query: str) -> str:
    """Unicode NFKC, case folded, white space collapsed: what makes two queries the same."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())


def query_id(query: str) -> str:
    """16 hex digits of the normalised text's sha256."""
    return hashlib.sha256(normalised(query).encode()).hexdigest()[:16]


def first_turn(record: dict[str, Any], where: str) -> str:
    """The first user turn of a record. Raises `BadInput` naming file, row and field."""
    query = typed(record, "query", str, where)
    if query is not None:
        return str(query)
    messages = typed(record, "messages", list, where)
    if messages is None:
        raise BadInput(f"{where}: expected a field query or messages, found {', '.join(record) or 'no field'}")
    for message in messages:
        if isinstance(message, dict) and message.get("role") == "user":  # later turns do not count, whatever is here
            if not isinstance(message.get("content"), str):
                raise BadInput(f"{where}: field messages: the first turn with role 'user' has no string content")
            return encodable(message["content"], "messages", where)
    raise BadInput(f"{where}: field messages has no turn with role 'user'")


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a JSONL file with their row numbers (from 0). Raises `BadInput`."""
    if not path.is_file():
        raise BadInput(f"query file {path} does not exist")
    with path.open("rb") as lines:
        for row, line in enumerate(lines):
            try:
                record = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, or nested beyond reason
                raise BadInput(f"{path}, row {row}: no JSON ({error}); expected one object a line") from error
            if not isinstance(record, dict):
                raise BadInput(f"{path}, row {row}: expected a JSON object, found {type(record).__name__}")
            yield row, record


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


def mine(config: QueriesConfig, funnel: Counter[str]) -> list[dict[str, Any]]:
    """The queries kept, in drawn order; `funnel` counts what was read, dropped by each reason, and kept."""
    held_out = {
        query_id(first_turn(record, f"{path}, row {row}")) for path in config.held_out for row, record in records(path)
    }
    kept: dict[str, dict[str, Any]] = {}
    for row, record in records(config.path):
        where = f"{config.path}, row {row}"
        query = first_turn(record, where).strip()
        identity = query_id(query)
        difficulty = typed(record, "difficulty", int, where)
        funnel["read"] += 1
        if not query:
            funnel["dropped: empty"] += 1
        elif identity in kept:
            funnel["dropped: duplicate"] += 1
        elif identity in held_out:
            funnel["dropped: held out for evaluation"] += 1
        elif difficulty is not None and difficulty < config.least_difficulty:
            funnel["dropped: too easy"] += 1
        else:
            kept[identity] = {
                "query_id": identity,
                "query": query,
                "source": config.path.name,
                "source_row": row,
                "reference": typed(record, "reference", str, where),
                "criteria": None,
                "difficulty": difficulty,
                "topic": typed(record, "topic", str, where),
            }
    drawn = sorted(kept.values(), key=lambda q: hashlib.sha256(f"{config.seed}:{q['query_id']}".encode()).digest())
    chosen = drawn[config.skip :][: config.limit]
    funnel["dropped: beyond the limit"] = len(drawn) - len(chosen)
    funnel["kept"] = len(chosen)
    if len(chosen) < config.least_queries:
        raise BadInput(
            f"{config.path}: {config.skip + config.least_queries} queries are needed (skip {config.skip}, then "
            f"{config.least_queries}), found {len(drawn)} ({dict(funnel)}): add queries, ask for fewer, or lower "
            "least_difficulty or skip"
        )
    return chosen


@step
def mine_queries(plan: Plan, store: Store, *, config: QueriesConfig) -> Ref:
    """Write the table `queries`, the funnel in its manifest."""
    funnel: Counter[str] = Counter()
    rows = mine(config, funnel)
    return write_table(store, plan.step, plan.key, QUERIES, [rows], plan.provenance, counts=dict(funnel))
