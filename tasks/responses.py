"""What several steps share about responses: parsing a sample's text into thoughts and solution."""

from __future__ import annotations

from typing import Any, Literal

from cot_formats import FORMATS

LongFormat = Literal["bolt", "r1", "still2", "rlmt", "marco", "qwq"]
Format = LongFormat | Literal["plain"]
PLAIN = "plain"  # a ShortCoT model's answer: all of it is the solution


def parse_response(text: str, format: Format) -> dict[str, Any]:
    """The columns thoughts, solution and violations of a response in `format`."""
    if format == PLAIN:
        solution = text.strip()
        return {"thoughts": None, "solution": solution or None, "violations": [] if solution else ["empty_solution"]}
    parsed = FORMATS[format].parse(text)
    names = list(dict.fromkeys(violation.name for violation in parsed.violations))
    return {"thoughts": parsed.thoughts, "solution": parsed.solution, "violations": names}


def delimiters(format: Format) -> tuple[str, ...]:
    """The strings that part thoughts from solution in `format`; free text and `plain` have none."""
    tagged = getattr(FORMATS.get(format), "FORMAT", None)
    return tagged.tags if tagged else ()


def is_well_formed(response: dict[str, Any]) -> bool:
    """Whether the response ended by itself and kept to its format."""
    return not response["violations"] and response["finish_reason"] == "stop"
