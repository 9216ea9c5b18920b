"""Signs in a text alone that it was cut off, for the formats whose solution has no closing delimiter."""

from __future__ import annotations

import re

BREAK = "\n\n"
BOXED = "\\boxed{"
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})(.*)$", re.MULTILINE)
_INLINE = re.compile(r"`[^`\n]+`")
_BOX_BEGUN = re.compile(r"\\(?:b(?:o(?:x(?:ed?)?)?)?)?$")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{")
_MATHS = ((r"\[", r"\]"), (r"\(", r"\)"))
_MID_SENTENCE = ",;–—-([{<\\=+/&"  # after these, and after a letter or digit, more must follow


def cut_off(solution: str, ended: bool | None = None) -> str | None:
    """Why a solution that no delimiter closes counts as cut off; None if it does not.

    `ended`: whether its author ended it; None if that is not known.
    """
    opened = left_open(solution)
    return f"{opened} is never closed" if opened else "cut at the end" if ended is False else None


def left_open(text: str) -> str | None:
    """What the text opens and never closes, such as `\\boxed{`; None if nothing.

    Looked for are a fenced block of code and, outside code, a box, and maths and LaTeX environments of the last
    paragraph (neither holds an empty line; a single `$` is not counted, since it is also a currency). Takes linear
    time.
    """
    prose, fence = _outside_code(text)
    if fence:
        return fence
    if _box_is_open(prose):
        return BOXED
    last = prose[prose.rfind(BREAK) + 1 :].replace(r"\\", "")  # line breaks, which may have a height: \\[4pt]
    for opening, closing in _MATHS:
        if last.rfind(opening) > last.rfind(closing):
            return opening
    if last.count("$$") % 2:
        return "$$"
    kinds = _ENVIRONMENT.findall(last)
    if kinds.count("begin") > kinds.count("end"):
        return "\\begin{"
    begun = _BOX_BEGUN.search(prose)
    return begun[0] if begun else None


def ends_mid_sentence(text: str) -> bool:
    """Whether the last paragraph ends in a letter, a digit, or a mark that more must follow.

    A single word is no sentence: it may be the whole answer.
    """
    text = text.rstrip()
    last = text[text.rfind(BREAK) + 1 :]
    return len(last.split(maxsplit=1)) == 2 and (last[-1].isalnum() or last[-1] in _MID_SENTENCE)


def _box_is_open(text: str) -> bool:
    """Whether the last box is never closed. Escaped braces (`\\left\\{ ... \\right.`) do not count."""
    start = text.rfind(BOXED)
    if start < 0:
        return False
    depth = 0
    for found in re.finditer(r"\\.|[{}]", text[start + len(BOXED) - 1 :]):
        depth += (found[0] == "{") - (found[0] == "}")
        if depth == 0:
            return False
    return True


def _outside_code(text: str) -> tuple[str, str | None]:
    """The text without its code, and the fence of a block that is never closed.

    A fence is closed by one at least as long, alone on its line.
    """
    prose, start, opened = [], 0, ""
    for found in _FENCE.finditer(text):
        fence, rest = found.groups()
        if opened and fence.startswith(opened) and not rest.strip():
            start, opened = found.end(), ""
        elif not opened and "`" not in rest:  # else it is inline: ```x``` so
            prose.append(text[start : found.start()])
            opened = fence
    if not opened:
        prose.append(text[start:])
    return _INLINE.sub("", BREAK.join(prose)), opened or None
