"""Markdown of untrusted text: whatever could be markup in it stays text."""

from __future__ import annotations

import re
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


def short(text: str, longest: int = 300) -> str:
    """The text on one line, cut after `longest` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest] + " ..."


def plain(text: str) -> str:
    """Untrusted text, shortened and escaped for a cell of a Markdown table."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", short(text))
