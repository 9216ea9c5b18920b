"""Markdown of untrusted text: whatever could be markup in it stays text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

MARKUP = re.compile(r"[\\`*_{}\[\]<>()#!|~&@]|:(?=//)|(?<=\w)\.(?=[A-Za-z])")


def as_text(cell: Any) -> Any:
    """A table cell, escaped: Prefect's UI and the Hub render text as Markdown with HTML."""
    return MARKUP.sub(r"\\\g<0>", " ".join(cell.split())) if isinstance(cell, str) else cell


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows that have the same columns. Cells are not escaped; without rows it is empty."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


def with_part(page: str, name: str, text: str) -> str:
    """The page with `text` between its marks `<!-- NAME: begin -->` and `<!-- NAME: end -->`, in place of what was.

    Raises:
        ValueError: the page lacks a mark.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"the page lacks the marks of {name}: {begin.strip()} and {end}")
    return before + begin + text + end + after


def short(text: str, longest: int = 300) -> str:
    """The text on one line, cut after `longest` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest] + " ..."


def plain(text: str) -> str:
    """Untrusted text, shortened and escaped for a cell of a Markdown table."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", short(text))


def fenced(text: str, longest: int = 4_000) -> str:
    """Untrusted text as a block of code, which no text can close, cut after `longest` characters.

    Control characters, those that change the direction of writing included, are replaced, so that what is read is what
    is there.
    """
    text = "".join(each if each in "\n\t" or _is_visible(each) else "\ufffd" for each in text.replace("\r\n", "\n"))
    text = text if len(text) <= longest else text[:longest] + "\n..."
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}text\n{text}\n{fence}"


def _is_visible(character: str) -> bool:
    """Whether a character is neither a control, nor a format character, nor half of one."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
