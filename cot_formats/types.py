"""What parsing gives back, and every violation's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Span = tuple[int, int]

# The one list of violations. "thoughts" and "solution" are a response's two sections.
# In free text (qwq) only missing_* and empty_* can occur.
VIOLATIONS = {
    "missing_thoughts": "neither delimiter of the thoughts is there (qwq: a single paragraph); offset 0",
    "missing_open_thoughts": "the thoughts are closed but never opened; offset of the closing delimiter",
    "unclosed_thoughts": "the thoughts are opened but never closed; offset of the opening delimiter",
    "empty_thoughts": "nothing but whitespace inside; offset where the content should begin",
    "missing_solution": "neither delimiter of it is there (r1: the thoughts are never closed); offset: the text's end",
    "missing_open_solution": "the solution is closed but never opened; offset of the closing delimiter",
    "unclosed_solution": "the solution is opened but never closed, as when cut off; offset of the opening delimiter",
    "empty_solution": "nothing but whitespace inside; offset where the content should begin",
    "repeated_open_thoughts": "a second such delimiter; offset of the second, their number in the detail",
    "repeated_close_thoughts": "likewise",
    "repeated_open_solution": "likewise",
    "repeated_close_solution": "likewise",
    "out_of_order": "a delimiter stands before one that it should follow; offset of the early one",
    "text_before": "stray text before the first section; offset of its first visible character, so below",
    "text_between": "stray text between the sections",
    "text_after": "stray text after the last section",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of a text: a key of `VIOLATIONS`, where it is (0 <= offset <= len(text)), and a short detail."""

    name: str
    offset: int
    detail: str

    def __str__(self) -> str:
        return f"{self.name} at {self.offset} ({self.detail})"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A response split in two, each part stripped; the spans are character offsets of the stripped parts in the text.

    A part can be there despite violations where it can be in one place only (a solution cut off by the length limit).
    A repeated or misplaced delimiter leaves both parts None. Violations come in order of offset, one of a name.
    """

    thoughts: str | None
    solution: str | None
    violations: tuple[Violation, ...]
    thoughts_span: Span | None
    solution_span: Span | None

    @property
    def ok(self) -> bool:
        """Both parts are there and nothing is amiss."""
        return not self.violations and self.thoughts is not None and self.solution is not None


class Format(Protocol):
    """What each format's module offers."""

    NAME: str

    def parse(self, text: str) -> Parsed:
        """Split a response. Raises nothing: faults come back as violations."""

    def render(self, thoughts: str, solution: str) -> str:
        """Write a response that parses back to just these parts. Raises `ValueError` where none does."""


def trimmed(text: str, start: int, end: int) -> tuple[str | None, Span | None]:
    """`text[start:end]` stripped, and where that lies; (None, None) where it is blank."""
    part = text[start:end]
    body = part.lstrip()
    if not body:
        return None, None
    start += len(part) - len(body)
    body = body.rstrip()
    return body, (start, start + len(body))


def check_part(what: str, part: str) -> None:
    """Raises `ValueError` if a part to render is blank or would lose whitespace at its ends."""
    if not part.strip():
        raise ValueError(f"the {what} is empty")
    if part != part.strip():
        raise ValueError(f"the {what} starts or ends with whitespace, which parsing strips: strip it first")
