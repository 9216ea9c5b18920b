"""Prompt templates: text files of the user's with {fields}."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from infra.errors import BadInput


@cache
def text_of(path: Path) -> str:
    """The text of a prompt template, read once in a process: a run asks with what it planned with, whatever is edited
    meanwhile. Raises `OSError`."""
    return path.read_text(encoding="utf-8")


def filled(template: Path, **fields: str) -> str:
    """The template's text with each {field} put in; what is put in is not searched for fields again.

    Raises:
        BadInput: the template lacks a field.
    """
    text = text_of(template).strip()
    for name in fields:
        if f"{{{name}}}" not in text:
            raise BadInput(f"{template}: the prompt template lacks the field {{{name}}}")
    return re.sub("|".join(rf"\{{{name}\}}" for name in fields), lambda found: fields[found[0][1:-1]], text)
