"""The plain types that the benchmarks share: a problem as posed to a model, and a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict


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
