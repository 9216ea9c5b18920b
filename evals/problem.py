"""The plain types that the benchmarks share: a problem as a model is asked it, and a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark, as a model is asked it."""

    problem_id: str
    """The authors' own id; unique in the benchmark."""
    query: str
    """The user turn that the model answers, the benchmark's own instructions included."""
    history: tuple[Message, ...] = ()
    """Turns before it, oldest first."""
    follow_ups: tuple[str, ...] = ()
    """User turns that come after the model's answer, one answer each."""
    reference: str | None = None
    """What the answer is graded against; JSON text where it has parts."""
    category: str | None = None
    """The group that figures are also told by: subject, grid size, ..."""
