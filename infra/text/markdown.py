"""Markdown from text that others wrote: what could be markup in it stays text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MARKUP = re.compile(r"[\\`*_{}\[\]<>()#!|~&@]|:(?=//)|(?<=\w)\.(?=[A-Za-z])")


def as_text(cell: Any) -> Any:
    """A cell of a table: Prefect's UI and the Hub read text as Markdown with HTML, so what could be such is escaped."""
    return MARKUP.sub(r"\\\g<0>", " ".join(cell.split())) if isinstance(cell, str) else cell


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows that have the same columns as a Markdown table, its cells as they are; "" of none."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


def short(text: str, longest: int = 300) -> str:
    """The text in one line, cut where it is longer than `longest` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest] + " ..."


def plain(text: str) -> str:
    """Text of users, models and programs as plain text for a cell of a Markdown table."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", short(text))
