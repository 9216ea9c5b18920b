"""Everyday problems whose answer is a number or a day of the week, graded wherever the answer stands in a solution.

A plain instruct model states its answers in its own words. A grader that asks for a fixed form would count them as
wrong, and a model that is trained to write that form would gain by it alone. So the reference answer tells which kind
of answer to look for. The stated answer comes first ("answer:", "the answer is"), else the last one in the text.
"""

from __future__ import annotations

import re

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY = re.compile(rf"\b(?:{'|'.join(DAYS)})\b", re.IGNORECASE)
# A minus before a number is its sign, unless it subtracts: then a number or a bracket stands before it, as in 8 - 3.
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![\d)])(?<![\d)] )[-\u2212])?(?:\\?[$£€¥₹]\s?)?"
    r"(?:\d{1,3}([,'\u2019 \u00a0\u2009\u202f])\d{3}(?:\1\d{3})*|\d+)(?:\.\d+)?(?:e[-+\u2212]?\d+)?(?!\d)",
    re.IGNORECASE,
)
_EITHER = re.compile(f"{_NUMBER.pattern}|{_DAY.pattern}", re.IGNORECASE)
_STATED = re.compile(r"\banswer(?: is|:|\s?=)", re.IGNORECASE)


def extract(solution: str | None, reference: str) -> str | None:
    """The answer that a solution gives, of the kind of the reference answer; None if it gives none.

    Without a reference (""), as in a vote, a number or a day is an answer. A number is returned without currency sign
    and thousands separators, a day of the week in lower case. Raises nothing; linear in the length.
    """
    text = solution or ""
    pattern = _DAY if _DAY.fullmatch(reference.strip()) else _NUMBER if reference.strip() else _EITHER
    stated = [match.end() for match in _STATED.finditer(text)]
    if stated and (after := pattern.search(text, stated[-1])):
        return _plain(after[0])
    found = [match[0] for match in pattern.finditer(text)]
    return _plain(found[-1]) if found else None


def is_gradable(reference: str) -> bool:
    """Whether a reference answer is a number or a day of the week; nothing equals any other."""
    return bool(_DAY.fullmatch(reference.strip()) or _NUMBER.fullmatch(reference.strip()))


def is_correct(prediction: str | None, reference: str) -> bool:
    """Whether the prediction equals the reference answer; 7.0 equals 7."""
    if prediction is None:
        return False
    sought = _plain(reference.strip())
    if sought in DAYS:
        return prediction == sought
    return _NUMBER.fullmatch(reference.strip()) is not None and float(prediction) == float(sought)


def _plain(answer: str) -> str:
    return re.sub(r"[^\w.+-]", "", answer.casefold().replace("\u2212", "-"))
