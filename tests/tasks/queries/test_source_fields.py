"""What a source's fields may be called and hold, and what a byte that is not UTF-8 costs."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import BadInput
from tasks.queries.sources import Skipped, Source, queries_of


def test_a_byte_that_is_not_utf8_costs_a_csv_file_one_row(tmp_path):
    path = tmp_path / "q.csv"
    rows = [f"which day is {n} ?".encode() for n in range(300)]
    path.write_bytes(b"query\n" + b"\n".join([*rows[:7], "café ?".encode("latin-1"), *rows[7:]]) + b"\n")
    skipped = Skipped("q.csv")
    assert len(list(queries_of(Source(path=str(path)), skipped))) == 300
    assert skipped.reasons == {"malformed": 1}
    with pytest.raises(BadInput, match=r"q\.csv, row 7: field query is not UTF-8: write the file again as UTF-8"):
        list(queries_of(Source(path=str(path))))
    path.write_bytes("query\nwhich day ?\n".encode("utf-16"))
    with pytest.raises(BadInput, match=r"q\.csv: not CSV in UTF-8 \(its first line is not\)"):
        list(queries_of(Source(path=str(path))))


def test_fields_of_other_names_and_answers_that_are_numbers(tmp_path):
    row = {"problem": "1 + 1 ?", "answer": 2, "subject": "math"}
    path = tmp_path / "q.jsonl"
    rows = [row, {**row, "problem": "3 / 2 ?", "answer": 1.5}]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    named = Source(path=str(path), column="problem", reference="answer", topic="subject")
    assert [(each["reference"], each["topic"]) for each in queries_of(named)] == [("2", "math"), ("1.5", "math")]
    pq.write_table(pa.Table.from_pylist([{**row, "more": "x"}]), tmp_path / "q.parquet")
    named = named.model_copy(update={"path": str(tmp_path / "q.parquet")})
    assert [(each["reference"], each["topic"]) for each in queries_of(named)] == [("2", "math")]
