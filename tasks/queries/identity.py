"""Which queries are the same. What is dropped as a duplicate is lost, so only what never changes a meaning is folded.

Folded are white space, the width and joining of letters (full-width, half-width, ligatures, Arabic forms) and the case
of words. Not folded are what NFKC would fold too: super- and subscripts, fractions, circled, Roman and double-struck
characters (2⁵ is not 25, ½ not 1/2, ℝ not R); nor the case of a lone letter (x, X) or of two letters that end in a
capital (Mb, MB). Accents and dashes are kept. Finding contamination folds more (`tasks/queries/overlap.py`): there a
query too many does no harm.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from tasks.queries.overlap import UNSPACED

_LETTER = r"[^\W\d_]"
_CAPITAL = re.compile(rf"[A-ZΑ-Ω](?<!{_LETTER}{_LETTER}.)(?!{_LETTER})")  # Latin, Greek; a word, or the end of a pair
_TYPOGRAPHY = re.compile("[\ufb00-\ufb06\ufb13-\ufb17\ufb50-\ufdff\ufe70-\ufefc\uff00-\uffef]+")
_PROSE = r".,;:?!'\"()\[\]{}…‘’“”«»、。，？！；：「」『』（）【】・¿¡_`"  # marks that seldom change a meaning, except:
_EXCEPT = (
    r"[()\[\]{}](?:(?=\d)|(?<=\d.))|\((?<=[^\W\d_].)(?=\S)|[.,:](?<=\d.)(?=\d)|!(?<=[\d)].)"  # 2(3), f(x), 1.5, 5!
)
_TERM = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[^\w\s{_PROSE}]|{_EXCEPT}")


def normalised(query: str) -> str:
    """The form by which two queries are the same: Unicode NFC, typography, case and white space folded."""
    if not query.isascii():
        query = _TYPOGRAPHY.sub(lambda found: unicodedata.normalize("NFKC", found[0]), query)
        query = unicodedata.normalize("NFC", query)
    return " ".join(_lowered(query).split())


def query_id(query: str) -> str:
    """The id of a query: the first 16 hex digits of the normalised text's sha256."""
    return hashlib.sha256(normalised(query).encode()).hexdigest()[:16]


def words_and_symbols(query: str) -> list[str]:
    """What near-duplicates are compared by: the words of the normalised text, and the symbols in it.

    Punctuation is dropped, but not in numbers and formulas (1.5, 5!, f(x), 2(3+4)).
    """
    return _TERM.findall(normalised(query))


def _lowered(text: str) -> str:
    """The text in lower case, except lone letters other than A and I, and pairs of letters that end in a capital."""
    parts, done = [], 0
    for found in _CAPITAL.finditer(text):
        first = found.start() - (found.start() > 0 and text[found.start() - 1].isalpha())
        if first < found.start() or found[0] not in "AI":
            parts += [text[done:first].lower(), text[first : found.end()]]
            done = found.end()
    return "".join([*parts, text[done:].lower()])
