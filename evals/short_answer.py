"""Verifiable problems whose solution ends in `answer : VALUE .`: graded by exact match, white space and case aside.

The nano problems are of this kind, and any file of queries with a short `reference` answer can be.
"""

from __future__ import annotations

import re

_STATES = re.compile(r"\banswer ?:", re.IGNORECASE)
_END = re.compile(r"\.(?: |$)")  # a full stop, but no decimal point


def extract(solution: str | None) -> str | None:
    """The answer that a solution states last, or None where it states none. Raises nothing; linear in the length."""
    _, *stated = _STATES.split(" ".join((solution or "").split()))
    return _END.split(stated[-1], maxsplit=1)[0].strip() or None if stated else None


def is_correct(prediction: str | None, reference: str) -> bool:
    """Whether the prediction is the reference answer."""
    return prediction is not None and " ".join(prediction.casefold().split()) == " ".join(reference.casefold().split())
