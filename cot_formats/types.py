"""The result of parsing, and the names of all violations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# All violations. "Thoughts" and "solution" are the two sections of a response.
# In free text (qwq), only missing_*, empty_* and unclosed_solution can occur.
VIOLATIONS = {
    "missing_thoughts": "both delimiters of the thoughts are missing (qwq: a single paragraph); offset 0",
    "missing_open_thoughts": "the thoughts are closed but never opened; offset of the closing delimiter",
    "unclosed_thoughts": "the thoughts are opened but never closed; offset of the opening delimiter",
    "empty_thoughts": "nothing but whitespace inside; offset where the content should begin",
    "missing_solution": "both delimiters of the solution are missing (r1: unclosed thoughts; qwq: cut before it); "
    "offset of the text's end",
    "missing_open_solution": "the solution is closed but never opened; offset of the closing delimiter",
    "unclosed_solution": "the solution is opened but never closed, as if truncated (r1, qwq: it was, or reads so); "
    "offset of the opening delimiter (r1: of `</think>`; qwq: where the solution starts)",
    "empty_solution": "nothing but whitespace inside; offset where the content should begin",
    "repeated_open_thoughts": "the delimiter occurs more than once; offset of the second, their number in the detail",
    "repeated_close_thoughts": "likewise",
    "repeated_open_solution": "likewise",
    "repeated_close_solution": "likewise",
    "out_of_order": "a delimiter comes before one that it should follow; offset of the early one",
    "text_before": "stray text before the first section; offset of its first visible character, here and below",
    "text_between": "stray text between the sections",
    "text_after": "stray text after the last section",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A fault of a text: a key of `VIOLATIONS`, its character offset (0 <= offset <= len(text)) and a short detail."""

    name: str
    offset: int
    detail: str

    def __str__(self) -> str:
        return f"{self.name} at {self.offset} ({self.detail})"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A response split in two, each part stripped.

    Despite violations, a part is present if only one place is possible for it (such as a truncated solution). If a
    delimiter is repeated or out of order, both parts are None. Violations are in order of offset, at most one per name.
    """

    thoughts: str | None
    solution: str | None
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether both parts are present and there is no violation."""
        return not self.violations and self.thoughts is not None and self.solution is not None


class Format(Protocol):
    """The interface of each format's module."""

    def parse(self, text: str) -> Parsed:
        """Split a response. Raises nothing: faults are returned as violations."""

    def render(self, thoughts: str, solution: str) -> str:
        """Render a response that parses back to exactly these parts. Raises `ValueError` if that is impossible."""


def check_part(what: str, part: str) -> None:
    """Raise `ValueError` if a part to render is blank or would lose whitespace at its ends."""
    if not part.strip():
        raise ValueError(f"the {what} is empty")
    if part != part.strip():
        raise ValueError(f"the {what} starts or ends with whitespace, which parsing strips: strip it first")
