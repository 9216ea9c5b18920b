"""Verifiable problems whose solution ends in `answer : VALUE .`: graded by exact match, white space and case aside.

The nano problems are of this kind, and any file of queries with a short `reference` answer can be.
"""

from __future__ import annotations

import re

_ANSWER = re.compile(r"\banswer\s*:\s*(.*?)\s*(?:\.\s*$|\.\s|$)", re.IGNORECASE)


def extract(solution: str | None) -> str | None:
    """The answer that a solution states last, or None where it states none."""
    found = _ANSWER.findall(" ".join((solution or "").split()))
    return found[-1] if found and found[-1] else None


def is_correct(prediction: str | None, reference: str) -> bool:
    """Whether the prediction is the reference answer."""
    return prediction is not None and " ".join(prediction.casefold().split()) == " ".join(reference.casefold().split())
