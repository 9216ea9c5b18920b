"""What a judge says itself: a verdict without its thoughts, and without the code and the quotations in it.

Judges quote answers, and an answer may hold what looks like a rating, `[[10]]`. Code is what fences, backticks or HTML
tags enclose; quotations are block quotes and what stands in quotation marks, but for the judge's own last words: `My
rating is: "[[7]]"`. Time is linear in the length.
"""

from __future__ import annotations

import re

_CLOSED = r"(?<![`\"'“])</think>(?![`\"'”])"
# Many templates open the thoughts themselves, but what begins as JSON or code is a verdict, whatever it quotes.
_THOUGHTS = re.compile(rf"\A(?:\s*+<think>.*?(?:{_CLOSED}|\Z)|(?!\s*[{{`]).*?{_CLOSED})", re.DOTALL)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`\n]*)")
_INLINE = re.compile(r"(?<!`)(`{1,3})(?!`)[^`\n]++\1(?!`)")
_TAG = re.compile(r"<(code|pre|blockquote|q|samp)\b[^<>]{0,200}>", re.IGNORECASE)
_QUOTED = re.compile(
    r"(?<![\w\"])\"(?=[^\s\"])[^\"\n]*+(?:\n(?!\s*\n)[^\"\n]*+)*+\"(?!\w)"
    r"|“[^“”]*+”|„[^„“”]*+[“”]|«[^«»]*+»|「[^「」]*+」|『[^『』]*+』"
    r"|(?<![\w'])'(?=[^\s'])(?:[^'\n]|(?<=\w)'(?=\w))*+'(?!\w)"
    r"|‘(?:[^‘’\n]|(?<=\w)’(?=\w))*+’(?!\w)"
)
_OWN = re.compile(
    r"((?:\b(?:[Mm]y|I)\b|私の)[^.。!?\n\"“「\[]{0,80}[:：]\s?)(?:\"([^\"\n]{1,80})\"|“([^“”\n]{1,80})”|「([^「」\n]{1,80})」)(?=\W{0,9}\Z)"
)
_OBJECT = re.compile(r"(?<!`)`\s*+\{[^`\n]*+`(?!`)")
_PLAIN_LANGUAGES = frozenset(("", "json", "jsonc", "json5", "text", "txt", "plaintext"))


def unquoted(text: str) -> str:
    """A verdict without thoughts, code and quotations, each of the latter two replaced by a blank.

    Thoughts and a fence that are never closed go to the end.
    """
    text = _untagged(_INLINE.sub(" ", _lines_outside(text, json=False)))
    own = _OWN.search(text, max(0, len(text) - 200))
    if own:
        text = text[: own.start()] + own[1] + (own[2] or own[3] or own[4])
    return _QUOTED.sub(" ", text)


def unquoted_json(text: str) -> str:
    """A verdict in JSON without thoughts, block quotes, code in other languages, objects in backticks amid other text.

    The JSON itself may stand in a fence.
    """
    text = _lines_outside(text, json=True)
    return text if _OBJECT.fullmatch(text.strip()) else _OBJECT.sub(" ", text)


def _lines_outside(text: str, *, json: bool) -> str:
    """The lines after the thoughts, in no block quote and no fence. `json`: not those around JSON or plain text."""
    kept: list[str] = []
    fence, hides = "", False
    for line in _THOUGHTS.sub("", text, count=1).splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence:
            hidden = hides
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
        elif found:
            fence, language = found[1], found[2].strip().casefold()
            hidden = hides = not json or language not in _PLAIN_LANGUAGES
        else:
            hidden = bool(re.match(r" {0,3}>", line))
        kept.append("\n" if hidden else line)
    return "".join(kept)


def _untagged(text: str) -> str:
    """A text without what is between HTML tags of code and quotations."""
    kept: list[str] = []
    place = 0
    lower = text.lower() if text.isascii() else re.sub("[A-Z]", lambda found: found[0].lower(), text)
    unclosed = set[str]()
    for tag in _TAG.finditer(text):
        name = tag[1].lower()
        if tag.start() < place or name in unclosed:
            continue
        end = lower.find(f"</{name}>", tag.end())
        if end < 0:
            unclosed.add(name)
            continue
        kept.append(text[place : tag.start()])
        place = end + len(name) + 3
    return " ".join([*kept, text[place:]])
