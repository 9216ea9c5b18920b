"""The rules that drop a response (BOLT section 3.1.3 says "rules"; which ones is this project's choice).

Each is a pure function over texts that returns a figure or a match. It takes time linear in the length of the text and
raises nothing on any text. The thresholds are in `tasks.responses.filter.FilterConfig`; the measurements that they were
chosen by are in tests/tasks/responses/test_rules.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from cot_formats.actions import ACTIONS, find_actions
from tasks.queries.overlap import size


def _script(letters: str, names: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of a script's letters and of words that begin like one of `names`; a Chinese word may be anywhere."""
    begun = "|".join(name if name >= "\u1100" else rf"\b{name}" for name in names.split())
    return re.compile(f"[{letters}]"), re.compile(begun, re.I)


SCRIPTS = {
    "Chinese or Japanese": _script(
        r"\u3040-\u30ff\u3105-\u312f\u3400-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff",
        "chin čín çin kines mandarin canton kanton pinyin hanzi japan japon japón giappon jepang kanji kana hiragana "
        "katakana китай япон 중국 일본",
    ),
    "Korean": _script(r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af", "korea korej corea coré hangul корей 韩 韓"),
    "Cyrillic": _script(
        r"\u0400-\u052f",
        "cyril kyril ciril russ ruso rusa rusk ruský rusça rosyj ukrain ucrain ucran bulgar búlgar serb "
        "macedon mazedon belarus belorus bielor weißruss kazak kasach mongol kyrgyz kirgi tajik tadschik "
        "tatar uzbek "
        "俄 乌克兰 烏克蘭 러시아 우크라 ロシア ウクライナ",
    ),
    "Arabic": _script(
        r"\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
        "arab árab arap persia persisch persa farsi urdu pashto paschtu kurd kürt uighur uyghur uigur араб "
        "персид 阿拉伯 波斯 아랍 アラビア",
    ),
    "Hebrew": _script(
        r"\u05d0-\u05ff", "hebr hébr hebrä ebraic ivrit yiddish jiddisch иврит 希伯来 希伯來 히브리 ヘブライ"
    ),
    "Devanagari": _script(
        r"\u0900-\u097f", "devanagari hindi sanskrit sanscrit sánscrit marathi nepal хинди 印地 힌디 ヒンディー"
    ),
    "Thai": _script(r"\u0e00-\u0e7f", "thai thaï tailand tajsk тайск 泰语 泰文 泰語 태국 タイ語"),
}
"""Scripts that are foreign in a response unless the query uses the script or names a language that is written in it.

Each has a pattern for its letters and one for the names of its languages, which also finds the names of countries and
those in some other languages. Latin and Greek letters are never foreign: code, formulas and names use them in every
language."""

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


def passages(listed: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """All passages of `length` words in a text, from its words (`tasks.queries.overlap.words`).

    In scripts without spaces each letter is a word there; here two letters count as one word.
    """
    if "".join(listed).isascii():
        return list(zip(*(listed[start:] for start in range(length)), strict=False))
    found, sizes, end, held = list[tuple[str, ...]](), [size(word) for word in listed], 0, 0.0
    for start, own in enumerate(sizes):
        while held < length and end < len(listed):
            held += sizes[end]
            end += 1
        if held < length:
            break
        found.append(tuple(listed[start:end]))
        held -= own
    return found


def repeated_share(listed: Sequence[str], length: int) -> float:
    """The share, from 0 to 1, of a text's passages of `length` words that occurred earlier in it; 0 if it has none."""
    found = passages(listed, length)
    return 1 - len(set(found)) / len(found) if found else 0.0


def foreign_share(query: str, text: str) -> float:
    """The share of a text's letters, from 0 to 1, that are in scripts foreign to the query (see `SCRIPTS`)."""
    if text.isascii():  # none of the scripts is
        return 0.0
    present = [(script, names) for script, names in SCRIPTS.values() if script.search(text)]
    foreign = [script for script, names in present if not (script.search(query) or names.search(query))]
    if not foreign:
        return 0.0
    letters = "".join(_LETTER.findall(text))  # without vowel signs and other marks, which the scripts' ranges include
    return sum(len(script.findall(letters)) for script in foreign) / max(1, len(letters))


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
