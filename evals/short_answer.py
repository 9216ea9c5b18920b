"""Verifiable problems whose solution ends in `answer : VALUE .`, graded by exact match up to white space and case.

The nano problems are of this kind; so is any file of queries with short `reference` answers.
"""

from __future__ import annotations

import re

_STATES = re.compile(r"\banswer ?:", re.IGNORECASE)
_END = re.compile(r"\.(?: |$)")  # a full stop, but not a decimal point


def extract(solution: str | None) -> str | None:
    """The last answer that a solution states; None if it states none. Raises nothing; linear in the length."""
    _, *stated = _STATES.split(" ".join((solution or "").split()))
    return _END.split(stated[-1], maxsplit=1)[0].strip() or None if stated else None


def is_correct(prediction: str | None, reference: str) -> bool:
    """Whether the prediction equals the reference answer, up to white space and case."""
    return prediction is not None and " ".join(prediction.casefold().split()) == " ".join(reference.casefold().split())
