"""The fields of a record that someone else wrote: texts and numbers, or an error that names source, row and field."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from infra.errors import BadInput


def typed(record: dict[str, Any], field: str, kind: type, where: str) -> Any:
    """The value of an optional field. Raises `BadInput` if it is not of type `kind`."""
    value = record.get(field)
    if is_absent(value):
        return None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadInput(f"{where}: field {field} must be {kind.__name__} or absent, found {type(value).__name__}")
    return encodable(value, field, where) if isinstance(value, str) else value


def reference_answer(record: dict[str, Any], field: str, where: str) -> str | None:
    """The reference answer; a number is one as it is written. Raises `BadInput` for other types."""
    held = record.get(field)
    if isinstance(held, int | float | Decimal) and not isinstance(held, bool) and not is_absent(held):
        return str(int(held)) if held % 1 == 0 else str(held)
    text: str | None = typed(record, field, str, where)
    return text if text and text.strip() else None


def is_absent(value: Any) -> bool:
    """Whether a field holds nothing; a number that is missing is NaN where a column was written by pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    """Whether a field holds no text and no turns."""
    return not value or (isinstance(value, str) and value.isspace())


def whole_number(record: dict[str, Any], field: str, where: str, most: int, what: str) -> int | None:
    """A whole number from 0 to `most`; 5.0 is 5, since a column with missing numbers becomes one of floats."""
    held = record.get(field)
    whole = isinstance(held, float | Decimal) and held % 1 == 0
    number: int | None = int(held) if whole else typed(record, field, int, where)  # type: ignore[arg-type]
    if number is not None and not 0 <= number <= most:
        raise BadInput(f"{where}: field {field} must be 0 to {most}, {what}, found {number}")
    return number


def is_whole(text: str) -> bool:
    """Whether a text has no half character (a lone surrogate), such as a byte that is not UTF-8."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def encodable(text: str, field: str, where: str) -> str:
    """The text, unchanged. Raises `BadInput` if a broken JSON escape left half a character (a lone surrogate) in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise BadInput(f"{where}: field {field} holds {half}, half of a character at {error.start}: fix it") from error
    return text
