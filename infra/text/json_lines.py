"""Files with one JSON object per line, as users write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from infra.errors import BadInput


def json_lines(file: BinaryIO, place: str) -> Iterator[dict[str, Any] | BadInput]:
    """The record of each line; in place of a line that holds none, the error that says so.

    A byte-order mark at the beginning and blank lines at the end are passed over. `place` names the file in errors.
    """
    blank = 0
    for row, line in enumerate(file):
        if row == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            blank += 1
            continue
        for number in range(row - blank, row):
            yield BadInput(f"{place}, row {number}: not JSON (a blank line): expected one object per line")
        blank = 0
        yield _record(line, f"{place}, row {row}")


def _record(line: bytes, where: str) -> dict[str, Any] | BadInput:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        return BadInput(f"{where}: not JSON ({error}): expected one object per line, in UTF-8")
    if not isinstance(record, dict):
        return BadInput(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record
