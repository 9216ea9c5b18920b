"""LongCoT text formats: parse, validate, render, convert. Pure Python: no torch, no Prefect, no I/O.

A format is a file. Those with delimiters are parsed in `tagged`, free text in `qwq`. Steps call
`responses.parse_response`.
"""

from __future__ import annotations

import re

from cot_formats import bolt, marco, qwq, r1, rlmt, still2
from cot_formats.tagged import Tagged
from cot_formats.types import VIOLATIONS, Format, Parsed, Violation

__all__ = ["FORMATS", "TAGGED", "VIOLATIONS", "Format", "Parsed", "Violation", "convert", "detect"]

TAGGED: dict[str, Tagged] = {
    "bolt": bolt.FORMAT,
    "r1": r1.FORMAT,
    "still2": still2.FORMAT,
    "rlmt": rlmt.FORMAT,
    "marco": marco.FORMAT,
}
FORMATS: dict[str, Format] = {**TAGGED, "qwq": qwq}

_OWNERS = {tag: name for name, tagged in TAGGED.items() for tag in tagged.tags}
_ANY_TAG = re.compile("|".join(map(re.escape, _OWNERS)))


def convert(text: str, source: str, target: str) -> str:
    """Convert the response `text` from format `source` to format `target`.

    Raises:
        ValueError: a format is unknown, the text violates `source` (the message lists every violation), or its parts
            cannot be rendered in `target`.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}: expected one of {', '.join(FORMATS)}")
    parsed = FORMATS[source].parse(text)
    if parsed.violations or parsed.thoughts is None or parsed.solution is None:
        raise ValueError(f"not a well-formed {source} response: {'; '.join(map(str, parsed.violations))}")
    return FORMATS[target].render(parsed.thoughts, parsed.solution)


def detect(text: str) -> str | None:
    """The name of the format that a text seems to be in, well-formed or not; None if no format is recognised.

    The earliest delimiter decides. R1 and RLMT share the delimiters of thoughts: what comes after these begins with
    `<response>` or ends with `</response>` in RLMT. Text without delimiters is `qwq` if it has a final answer (heading
    or \\boxed{}) after its thoughts.
    """
    found = _ANY_TAG.search(text)
    if found is None:
        return "qwq" if qwq.is_recognisable(text) else None
    owner = _OWNERS[found[0]]
    opening, closing = rlmt.FORMAT.tags[2:]
    if owner in ("r1", "rlmt") and found[0] not in (opening, closing):
        after = text.rpartition(rlmt.FORMAT.tags[1])[2].strip()
        return "rlmt" if after.startswith(opening) or after.endswith(closing) else "r1"
    return owner
