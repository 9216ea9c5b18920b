"""Prompt templates: the user's text files with {fields}."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from infra.errors import BadInput


@cache
def text_of(path: Path) -> str:
    """The text of a prompt template, read once per process, so that a run asks with the text that it was planned with.

    A byte-order mark is no part of it.

    Raises:
        OSError: the file cannot be read.
    """
    return path.read_text(encoding="utf-8-sig")


def filled(template: Path, **fields: str) -> str:
    """The template's text with its {fields} filled in. The values are not searched for fields.

    Raises:
        BadInput: the template cannot be read, or lacks a field.
    """
    try:
        text = text_of(template).strip()
    except OSError as error:
        raise BadInput(f"{template}: the prompt template cannot be read ({error.strerror})") from error
    for name in fields:
        if f"{{{name}}}" not in text:
            raise BadInput(f"{template}: the prompt template lacks the field {{{name}}}")
    return re.sub("|".join(rf"\{{{name}\}}" for name in fields), lambda found: fields[found[0][1:-1]], text)
