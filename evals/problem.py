"""What the benchmarks share: a problem as posed to a model, a message, and the fields of a record that is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeGuard


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark, as posed to a model."""

    problem_id: str
    """The authors' own id, unique in the benchmark."""
    query: str
    """The user turn that the model answers, including the benchmark's own instructions."""
    history: tuple[Message, ...] = ()
    """Turns before the query, oldest first."""
    follow_ups: tuple[str, ...] = ()
    """User turns after the model's answer, each with an answer of its own."""
    reference: str | None = None
    """What the answer is graded against; JSON text if it has several parts."""
    category: str | None = None
    """The group by which figures are also given: subject, grid size, ..."""


def text_field(record: Mapping[str, Any], field: str, row: int) -> str:
    """A field that holds a non-empty string. Raises `ValueError` with row and field."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise bad_field(row, field, "a non-empty string", value)
    return value


def are_texts(value: Any) -> TypeGuard[list[str]]:
    """Whether a value is a list of strings."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def bad_field(row: int, field: str, expected: str, found: Any) -> ValueError:
    """The error about a field that is missing or malformed."""
    return ValueError(f"row {row}: field {field}: expected {expected}, found {found!r:.100}")
