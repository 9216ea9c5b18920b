"""Verifiable problems whose solution states `answer : VALUE .`, graded by exact match up to white space, case and a
full stop at the end.

The nano problems are of this kind; so is any file of queries with short `reference` answers.
"""

from __future__ import annotations

import re
import unicodedata

_STATES = re.compile(r"\banswer\s*+:", re.IGNORECASE)
_END = re.compile(r"\.(?=\s|\Z)|\n")  # a full stop, but not a decimal point; or the end of the line


def extract(solution: str | None, reference: str = "") -> str | None:
    """The last answer that a solution states; None if it states none. Raises nothing; linear in the length.

    It ends with a full stop or its line, without bold type: what follows may be a remark. It has a full stop
    inside only if the reference has it too: `J. K. Rowling`.
    """
    _, *stated = _STATES.split((solution or "").replace("**", ""))
    if not stated:
        return None
    text, sought = stated[-1].lstrip(), _plain(reference)
    if ". " in sought and (_plain(text.split("\n", 1)[0]) + ". ").startswith(f"{sought}. "):
        return " ".join(reference.split())
    return " ".join(_END.split(text, maxsplit=1)[0].split()) or None


def is_correct(prediction: str | None, reference: str) -> bool:
    """Whether the prediction equals the reference answer, up to white space, case and a full stop at the end."""
    return prediction is not None and _plain(prediction) == _plain(reference)


def _plain(answer: str) -> str:
    words = " ".join(unicodedata.normalize("NFC", answer).casefold().split())
    return words.rstrip(" .") or words
