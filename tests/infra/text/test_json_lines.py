from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import BadInput
from infra.text.json_lines import json_lines

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))
RECORDS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=5)


@given(
    RECORDS, st.sampled_from(["\n", "\r\n", " \n"]), st.sampled_from(["", "\ufeff"]), st.integers(0, 3), st.booleans()
)
def test_records_are_read_whatever_system_wrote_the_lines(records, newline, mark, blanks, escaped):
    lines = [json.dumps(record, ensure_ascii=escaped) for record in records]
    text = mark + newline.join(lines) + newline * blanks
    assert list(json_lines(io.BytesIO(text.encode()), "f")) == records


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([b"{}", b"\n", b" ", b"[", b"\xff", b"\xef\xbb\xbf"])).map(b"".join)
)
def test_every_line_but_blank_ones_at_the_end_gives_a_record_or_an_error(content):
    lines = content.split(b"\n")
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    while lines and not lines[-1].strip():
        lines.pop()
    found = list(json_lines(io.BytesIO(content), "f"))
    assert len(found) == len(lines)
    for row, each in enumerate(found):
        assert isinstance(each, dict) or str(each).startswith(f"f, row {row}: ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "not JSON (a blank line): expected one object per line"),
        (b'{"a": ', "not JSON (Expecting value"),
        (b"\xff", "not JSON ('utf-8' codec can't decode"),
        (b"[1]", "expected a JSON object, found list"),
        (b"[" * 100_000, "not JSON (maximum recursion depth"),
        ('\ufeff{"a": 1}'.encode(), "not JSON (Unexpected UTF-8 BOM"),
    ],
)
def test_a_line_that_holds_no_record_is_named_and_the_next_one_is_read(line, message):
    first, second, third = json_lines(io.BytesIO(b'{"a": 1}\n' + line + b'\n{"a": 3}'), "q.jsonl")
    assert (first, third) == ({"a": 1}, {"a": 3})
    assert isinstance(second, BadInput)
    assert str(second).startswith("q.jsonl, row 1: ")
    assert message in str(second)
