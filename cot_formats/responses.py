"""What several steps need of response formats: parsing samples, delimiters, thoughts opened by the prompt."""

from __future__ import annotations

from typing import Any, Literal

from cot_formats import TAGGED, qwq
from cot_formats.tagged import Tagged

LongFormat = Literal["bolt", "r1", "still2", "rlmt", "marco", "qwq"]
Format = LongFormat | Literal["plain"]
PLAIN = "plain"  # a ShortCoT model's answer, all of which is the solution


def parse_response(text: str, format: Format, opened: bool = False, ended: bool | None = None) -> dict[str, Any]:
    """The columns `thoughts`, `solution` and `violations` of a response in `format`.

    Args:
        opened: the prompt has already opened the thoughts (see `opened_part`).
        ended: whether the response ended by itself, as its finish reason says; None if that is not known. A format
            whose solution has no closing delimiter needs it to tell a response that was cut off.
    """
    if format == PLAIN:
        solution = text.strip()
        return {"thoughts": None, "solution": solution or None, "violations": [] if solution else ["empty_solution"]}
    tagged = tagged_form(format)
    parsed = tagged.parse(text, opened, ended) if tagged else qwq.parse(text, ended)
    names = list(dict.fromkeys(violation.name for violation in parsed.violations))
    return {"thoughts": parsed.thoughts, "solution": parsed.solution, "violations": names}


def tagged_form(format: Format) -> Tagged | None:
    """The `Tagged` form of a format with delimiters; None for free text and `plain`."""
    return TAGGED.get(format)


def delimiters(format: Format) -> tuple[str, ...]:
    """The delimiters of thoughts and solution in `format`; free text and `plain` have none."""
    tagged = tagged_form(format)
    return tagged.tags if tagged else ()


def opened_part(prefix: str, format: Format) -> str:
    """The part of a response in `format` that the prompt already contains, such as "<think>\\n"; "" if none.

    `prefix`: what the chat template puts before every answer (`infra.text.chat.generation_prefix`).
    """
    opening = delimiters(format)[:1]
    return prefix[prefix.rindex(opening[0]) :] if prefix.rstrip().endswith(opening) else ""


def continuation(response: str, opened: str) -> str:
    """The rest of a rendered response, of which the prompt already contains `opened`."""
    return response.removeprefix(opened) if response.startswith(opened) else response[len(opened.rstrip()) :].lstrip()


def beginning(format: Format) -> str:
    """What comes before the thoughts of a response in `format`; "" in free text."""
    tagged = tagged_form(format)
    return tagged.layout.partition("{thoughts}")[0] if tagged else ""


def unfinished(format: Format, thoughts: str) -> str:
    """A response in `format` up to where its solution begins.

    Raises:
        ValueError: the format has no delimiters; or the thoughts are blank, unstripped or spell one.
    """
    tagged = tagged_form(format)
    if tagged is None:
        raise ValueError(f"a response in the format {format} does not say where its solution begins")
    return tagged.render(thoughts, "x")[: tagged.layout.index("{solution}") - len("{thoughts}") + len(thoughts)]


def is_well_formed(response: dict[str, Any]) -> bool:
    """Whether the response ended by itself and has no violations."""
    return not response["violations"] and response["finish_reason"] == "stop"
