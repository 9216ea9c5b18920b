"""Verifiable problems whose solution states `answer : VALUE .`, graded by exact match up to white space and case.

The nano problems are of this kind; so is any file of queries with short `reference` answers.
"""

from __future__ import annotations

import re

_STATES = re.compile(r"\banswer\s*+:", re.IGNORECASE)
_END = re.compile(r"\.(?=\s|\Z)|\n")  # a full stop, but not a decimal point; or the end of the line


def extract(solution: str | None) -> str | None:
    """The last answer that a solution states; None if it states none. Raises nothing; linear in the length.

    It ends with a full stop or its line, without bold type: what follows may be a remark.
    """
    _, *stated = _STATES.split((solution or "").replace("**", ""))
    return " ".join(_END.split(stated[-1].lstrip(), maxsplit=1)[0].split()) or None if stated else None


def is_correct(prediction: str | None, reference: str) -> bool:
    """Whether the prediction equals the reference answer, up to white space and case."""
    return prediction is not None and " ".join(prediction.casefold().split()) == " ".join(reference.casefold().split())
