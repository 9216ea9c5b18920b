"""The rules that drop a response (BOLT section 3.1.3 says "rules"; which ones is this project's choice).

Each is a pure function over texts that returns a figure or a match. It takes time linear in the length of the text and
raises nothing on any text. The thresholds are in `tasks.responses.filter.FilterConfig`; the measurements that they were
chosen by are in tests/tasks/responses/test_rules.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from cot_formats.actions import ACTIONS, find_actions

SCRIPTS = {
    "Chinese or Japanese": (
        re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"),
        re.compile(r"\b(?:chinese|mandarin|cantonese|pinyin|hanzi|japanese|kanji|kana|hiragana|katakana)\b", re.I),
    ),
    "Korean": (re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]"), re.compile(r"\b(?:korean|hangul)\b", re.I)),
    "Cyrillic": (
        re.compile(r"[\u0400-\u052f]"),
        re.compile(
            r"\b(?:cyrillic|russian|ukrainian|bulgarian|serbian|macedonian|belarusian|kazakh|mongolian)\b", re.I
        ),
    ),
    "Arabic": (
        re.compile(r"[\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc]"),
        re.compile(r"\b(?:arabic|persian|farsi|urdu|pashto|kurdish)\b", re.I),
    ),
    "Hebrew": (re.compile(r"[\u05d0-\u05ff]"), re.compile(r"\b(?:hebrew|yiddish)\b", re.I)),
    "Devanagari": (
        re.compile(r"[\u0900-\u097f]"),
        re.compile(r"\b(?:devanagari|hindi|sanskrit|marathi|nepali)\b", re.I),
    ),
    "Thai": (re.compile(r"[\u0e00-\u0e7f]"), re.compile(r"\bthai\b", re.I)),
}
"""Scripts that are foreign in a response unless the query uses the script or names a language that is written in it.

Each has a pattern for its letters and one for the names of its languages. Latin and Greek letters are never foreign:
code, formulas and names use them in every language."""

_LETTER = re.compile(r"[^\W\d_]")

_SPECIAL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>"  # Llama 3, ChatML, Phi, ...
    r"|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>"  # DeepSeek
    r"|</s>\s*\Z|</s>\s*<s>|<(?:bos|eos|pad|unk|mask)>"  # SentencePiece and similar tokenizers; HTML has an element <s>
    r"|<(?:start|end)_of_(?:turn|image)>"  # Gemma
    r"|\[/?INST\]|<</?SYS>>|\[(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"  # Llama 2, Mistral
)

_PLACE = r"(?:thoughts|thinking|thought process|internal (?:monologue|reasoning)|inner monologue)"
_MENTION = re.compile(
    rf"\binternal[ _](?:thoughts|thinking|thought process|monologue|reasoning)\b"
    rf"|\b(?:in|from|on|per|see|to) (?:my|the|our) (?:\w+ )?{_PLACE} (?:above|section|process|part|earlier)\b"
    rf"|\b(?:as|like) (?:(?:i|we)(?:'ve| have)? )?(?:\w+ ){{1,3}}in (?:my|the|our) (?:\w+ )?{_PLACE}\b"
    rf"|\babove {_PLACE}\b|\b{_PLACE} above\b"
    rf"|\b(?:my|the) {_PLACE} section\b",
    re.I,
)


def passages(listed: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    """All runs of `length` words (`tasks.queries.overlap.words`)."""
    return zip(*(listed[start:] for start in range(length)), strict=False)


def repeated_share(listed: Sequence[str], length: int) -> float:
    """The share, from 0 to 1, of a text's runs of `length` words that occurred earlier in it; 0 if it is shorter."""
    count = len(listed) - length + 1
    return 1 - len(set(passages(listed, length))) / count if count > 0 else 0.0


def foreign_share(query: str, text: str) -> float:
    """The share of a text's letters, from 0 to 1, that are in scripts foreign to the query (see `SCRIPTS`)."""
    letters = "".join(_LETTER.findall(text))  # without vowel signs and other marks, which the scripts' ranges include
    foreign = sum(
        len(script.findall(letters))
        for script, names in SCRIPTS.values()
        if not (script.search(query) or names.search(query))
    )
    return foreign / len(letters) if foreign else 0.0


def copies(listed: Sequence[str], shown: Collection[tuple[str, ...]], length: int) -> bool:
    """Whether a text contains one of the passages `shown`, which are `length` words long."""
    return bool(shown) and any(passage in shown for passage in passages(listed, length))


def special_token(text: str) -> str | None:
    """The first string in the text that is a control token of a known model family; None if there is none."""
    found = _SPECIAL.search(text)
    return found[0] if found else None


def mention_of_thoughts(solution: str) -> str | None:
    """The first phrase in a solution that refers to the thoughts, which its reader does not see; None if none does.

    Finds English phrases only; "thoughts" alone is no mention ("my thoughts on the film").
    """
    found = _MENTION.search(solution)
    return found[0] if found else None


def missing_actions(thoughts: str) -> list[str]:
    """Which of the paper's four reasoning actions the thoughts do not show, according to `cot_formats.actions`."""
    shown = {action.name for action in find_actions(thoughts)}
    return [action for action in ACTIONS if action not in shown]
