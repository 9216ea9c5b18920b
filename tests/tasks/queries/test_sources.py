from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_for_tests import KEY, SECRET, boto_client, moto_url, s3_bucket, s3_url

from infra.errors import BadInput
from tasks.queries.collect import collect_queries
from tasks.queries.sources import Source, problems_of, queries_of, records

__all__ = ["moto_url", "s3_bucket", "s3_url"]
RECORDS = {
    "messages": {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "What is it?"}]},
    "conversations": {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "That."}]},
    "conversation": {"conversation": [{"role": "user", "content": "What is it?"}]},
    "alpaca": {"instruction": "What is it?", "input": " ", "output": "That."},
    "column": {"query": "What is it?"},
}


def written(path: Path, *rows: object) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def found(path: str, **more: Any) -> list[str]:
    return [row["query"] for row in queries_of(Source(path=path, **more))]


@pytest.mark.parametrize("layout", [None, *RECORDS])
def test_every_layout_is_detected_or_can_be_named(tmp_path, layout):
    rows = RECORDS.values() if layout is None else [RECORDS[layout]]
    path = written(tmp_path / "q.jsonl", *rows)
    assert found(path, layout=layout) == ["What is it?"] * len(rows)


def test_the_named_layout_wins_if_a_row_fits_two(tmp_path):
    path = written(tmp_path / "q.jsonl", {**RECORDS["column"], "instruction": "Do it", "input": "to this"})
    assert found(path) == ["What is it?"]
    assert found(path, layout="alpaca") == ["Do it\n\nto this"]


def test_the_first_turn_of_a_column_of_turns_is_taken(tmp_path):
    assert found(written(tmp_path / "q.jsonl", {"turns": ["one", "two"]}), column="turns") == ["one"]


def test_only_the_first_user_turn_counts(tmp_path):
    turns = [{"role": role, "content": role + str(n)} for n, role in enumerate(("system", "user", "user"))]
    assert found(written(tmp_path / "q.jsonl", {"messages": turns})) == ["user1"]


def test_parquet_and_csv_are_read_like_json_lines(tmp_path):
    rows = [
        {"query": 'a "quoted"\nquery', "reference": "1", "difficulty": 3, "topic": "maths", "other": "x"},
        {"query": "plain, with a comma", "reference": None, "difficulty": None, "topic": None, "other": "y"},
    ]
    lines = written(tmp_path / "q.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    with (tmp_path / "q.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    plain = [{**row, "source": ""} for row in queries_of(Source(path=lines))]
    assert [(row["reference"], row["difficulty"], row["topic"]) for row in plain] == [("1", 3, "maths"), (None,) * 3]
    for name in ("q.parquet", "q.csv"):
        assert [{**row, "source": ""} for row in queries_of(Source(path=str(tmp_path / name)))] == plain


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "hello"},
            "expected a field query or messages or conversations or conversation or instruction, found text: set",
        ),
        ({}, "found no field"),
        ('{"half \\ud83d": 1}', "found half \\ud83d: set"),
        ('{"messages": [{"half \\ud83d": 1}]}', "a turn has no string role or from, found half \\ud83d"),
        ({"query": 3}, "field query must be str or absent, found int"),
        ({"query": [["x"]]}, "field query must be str or absent, found list"),
        ({"messages": "hello"}, "field messages must be list or absent, found str"),
        ({"messages": ["hello"]}, "field messages must hold turns, objects with a role, found str"),
        ({"messages": [{"content": "x"}]}, "field messages: a turn has no string role or from, found content"),
        ({"messages": [{"role": "user", "content": 5}]}, "a turn has no string content or value or text"),
        ({"instruction": "x", "input": 5}, "field input must be str or absent, found int"),
        ({"query": "x", "difficulty": "5"}, "field difficulty must be int or absent, found str"),
        ({"query": "x", "difficulty": 4.5}, "field difficulty must be int or absent, found float"),
        ({"query": "x", "difficulty": True}, "field difficulty must be int or absent, found bool"),
        ({"query": "x", "difficulty": 8}, "field difficulty must be 0 to 7"),
        ({"query": "x", "reference": [5]}, "field reference must be str or absent, found list"),
        ({"query": "x", "topic": ["y"]}, "field topic must be str or absent, found list"),
        ('{"query": "half \\ud83d"}', "field query holds '\\ud83d', half of a character"),
        ('{"messages": [{"role": "user", "content": "\\ude00"}]}', "field messages holds '\\ude00'"),
        ('{"query": "cut', "not JSON"),
        ("", "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_errors_name_file_row_and_field(tmp_path, row, message):
    path = written(tmp_path / "queries.jsonl", {"query": "good"}, row, {"query": "good too"})
    with pytest.raises(BadInput, match=r"queries\.jsonl, row 1: ") as error:
        found(path)
    assert message in str(error.value)
    str(error.value).encode()  # can be printed
    if not (isinstance(row, dict) and {"difficulty", "reference", "topic"} & set(row)):  # not read of a problem
        with pytest.raises(BadInput, match=r"queries\.jsonl, row 1: "):
            list(problems_of(Source(path=path)))


def test_a_row_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"query": "good"}\n' + '{"query": "é"}\n'.encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.jsonl, row 1: .*utf-8"):
        found(str(path))


def test_a_parquet_file_cut_short_without_the_column_or_of_another_type_is_named(tmp_path):
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"text": ["one"] * 1_000}), path)
    with pytest.raises(BadInput, match=r"q\.parquet, row 0: expected a field query or .*, found text: set"):
        found(str(path))
    assert len(found(str(path), column="text")) == 1_000
    pq.write_table(pa.table({"query": [1, 2]}), path)
    with pytest.raises(BadInput, match=r"q\.parquet, row 0: field query must be str or absent, found int"):
        found(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"q\.parquet: not a complete Parquet file .*copy or write it again"):
        found(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,topic\nx\n", r"row 0: expected 2 fields, as in the first line"),
        ("query\nx,y\n", r"row 0: expected 1 fields"),
        ("query,difficulty\nx,4.5\n", r"row 0: field difficulty must be a whole number or empty, found '4.5'"),
        ("query,difficulty\nx,hard\n", r"row 0: field difficulty must be a whole number or empty, found 'hard'"),
        ('query\n"open\n', r"not CSV in UTF-8"),
        ("text\nx\n", r"row 0: expected a field query"),
        ("query,query\nx,y\n", r"expected one column query, found several: rename or remove the others"),
    ],
)
def test_a_bad_csv_file_is_named(tmp_path, text, message):
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(BadInput, match=rf"q\.csv(, |: ){message}"):
        found(str(tmp_path / "q.csv"))


def test_two_columns_of_one_name_are_an_error_where_they_are_read(tmp_path):
    path = str(tmp_path / "q.parquet")
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["query", "id", "id"]), path)
    assert found(path) == ["a"]
    with pytest.raises(BadInput, match=r"q\.parquet: expected one column id, found several"):
        list(records(Source(path=path), whole=True))


@pytest.mark.parametrize(("zone", "late"), [(None, 2**58), ("Mars/Phobos", 1)])
def test_a_whole_parquet_file_with_a_value_that_python_cannot_hold_is_named(tmp_path, zone, late):
    path = str(tmp_path / "d.parquet")
    pq.write_table(pa.table({"query": ["a", "b"], "when": pa.array([0, late], pa.timestamp("us", zone))}), path)
    with pytest.raises(BadInput, match=r"d\.parquet, row \d: field when cannot be read"):
        list(records(Source(path=path), whole=True))
    assert found(path) == ["a", "b"]


@pytest.mark.parametrize("empty", ["", " ", [], None])
@pytest.mark.parametrize("field", ["query", "messages"])
def test_a_field_that_is_empty_gives_way_to_one_that_is_filled(tmp_path, field, empty):
    assert found(written(tmp_path / "q.jsonl", {field: empty, **RECORDS["conversations"]})) == ["What is it?"]


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.parquet"])
def test_missing_and_empty_files_are_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(BadInput, match=rf"query file .*{name} does not exist"):
        found(str(path))
    with pytest.raises(BadInput, match=rf"input file .*{name} does not exist"):
        Source(path=str(path)).contents()
    if name.endswith("parquet"):
        pq.write_table(pa.table({"query": pa.array([], pa.string())}), path)
    else:
        path.write_text("query\n" if name.endswith("csv") else "")
    with pytest.raises(BadInput, match=rf"{name}: holds no rows"):
        found(str(path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either a path or a dataset"),
        ({"path": "a.jsonl", "dataset": "a/b@c"}, "either a path or a dataset"),
        ({"path": "a.txt"}, r"expected a file name that ends in \.jsonl, \.parquet, \.csv"),
        ({"dataset": "org/name"}, "a revision is required"),
        ({"dataset": "org/name@"}, "a revision is required"),
        ({"dataset": "org/name@refs//x"}, "a revision is required"),
    ],
)
def test_bad_settings_of_a_source_are_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        Source(**given)


@pytest.mark.parametrize("revision", ["0123abc", "main", "refs/convert/parquet", "refs/pr/1", "v1.0"])
def test_a_data_set_is_streamed_at_its_revision(monkeypatch, revision):
    calls: list[Any] = []

    def load(*given: Any, **more: Any) -> Any:
        calls.append((given, more))
        return datasets.IterableDataset.from_generator(lambda: iter([RECORDS["conversations"], RECORDS["alpaca"]]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source(dataset=f"org/name@{revision}", subset="main", split="test")
    rows = list(queries_of(source))
    assert calls == [(("org/name", "main"), {"split": "test", "revision": revision, "streaming": True})]
    assert [(row["query"], row["source"], row["source_row"]) for row in rows] == [
        ("What is it?", "org/name", 0),
        ("What is it?", "org/name", 1),
    ]
    digests = {
        source.model_copy(update=change).contents()
        for change in ({}, {"dataset": "org/name@4567def"}, {"subset": "other"}, {"subset": None}, {"split": "train"})
    }
    assert len(digests) == 5


def test_a_file_on_s3_is_read_with_the_projects_settings(s3_bucket, s3_url, monkeypatch):
    settings = {"ENDPOINT_URL": s3_url, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET, "REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"BOLT_{name}", value)
    client = boto_client(s3_url)
    client.put_object(Bucket=s3_bucket, Key="in/q.jsonl", Body=b'{"query": "one"}\n{"query": "two"}\n')
    source = Source(path=f"s3://{s3_bucket}/in/q.jsonl")
    before = source.contents()
    assert [row["query"] for row in queries_of(source)] == ["one", "two"]
    client.put_object(Bucket=s3_bucket, Key="in/q.jsonl", Body=b'{"query": "new"}\n{"query": "two"}\n')
    assert source.contents() != before
    with pytest.raises(BadInput, match=r"in/none\.jsonl does not exist"):
        list(queries_of(Source(path=f"s3://{s3_bucket}/in/none.jsonl")))


CONVERSATIONS = {
    "role and content": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
    "from and value": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
    "other case": [{"role": "System", "content": "Be kind"}, {"role": "User", "content": "Why?"}],
    "null fields": [{"from": None, "value": None, "role": "user", "content": "Why?"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}],
    "text": [{"role": "human", "text": "Why?"}],
    "columns": {"from": ["system", "human", "gpt"], "value": ["Be kind", "Why?", "So."]},
    "more than is asked": [{"role": "user", "content": "Why?", "redacted": False, "turn_id": 3, "toxic": None}],
}


@pytest.mark.parametrize("field", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
def test_conversations_of_real_data_sets_are_read(tmp_path, field, turns):
    assert found(written(tmp_path / "q.jsonl", {field: turns})) == ["Why?"]
    pq.write_table(pa.Table.from_pylist([{field: turns, "id": 1}]), tmp_path / "q.parquet")
    assert found(str(tmp_path / "q.parquet")) == ["Why?"]
    if isinstance(turns, list):
        assert found(written(tmp_path / "q.jsonl", {"prompt": turns}), column="prompt") == ["Why?"]


def test_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "One"}, "two"]
    assert found(written(tmp_path / "q.jsonl", {"messages": [{"role": "user", "content": parts}]})) == ["One\ntwo"]


def said(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": " \n"}, "empty"),
        ({"query": None}, "empty"),
        ({"query": []}, "empty"),
        ({"query": ["", "more"]}, "empty"),
        ('{"query": NaN}', "empty"),
        ({"instruction": "", "input": ""}, "empty"),
        ({"messages": None}, "empty"),
        ({"messages": [said("user", "")]}, "empty"),
        ({"messages": [said("user", None), said("user", "more")]}, "empty"),
        ({"messages": [said("user", [])]}, "empty"),
        ({"messages": []}, "no user turn"),
        ({"messages": [said("system", "be kind")]}, "no user turn"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "the first turn is not the user's"),
        ({"conversation": [said("assistant", "Hi!"), said("user", "Yes")]}, "the first turn is not the user's"),
        ({"messages": [said("user", [{"type": "text", "text": "See"}, {"type": "image_url"}])]}, "not text alone"),
    ],
)
def test_a_row_without_a_usable_query_is_counted_and_skipped(world, tmp_path, row, reason):
    made = world.do(
        collect_queries, source=Source(path=written(tmp_path / "q.jsonl", {"query": "a"}, row, {"query": "b"}))
    )
    assert world.counts(made) == {"read": 3, f"dropped: {reason}": 1, "kept": 2}
    assert [(row["query"], row["source_row"]) for row in world.rows(made)] == [("a", 0), ("b", 2)]
    assert [row["query"] for row in problems_of(Source(path=str(tmp_path / "q.jsonl")))] == ["a", "b"]


@pytest.mark.parametrize(
    "row",
    [
        '{"query": "cut',
        "",
        '{"query": 5}',
        '{"text": "x"}',
        '{"query": "x", "difficulty": "hard"}',
        '{"query": "\\ud83d"}',
    ],
)
def test_a_few_malformed_rows_are_counted_and_skipped(world, tmp_path, row, caplog):
    good = [{"query": f"number {n}"} for n in range(150)]
    made = world.do(collect_queries, source=Source(path=written(tmp_path / "q.jsonl", *good[:7], row, *good[7:])))
    assert world.counts(made) == {"read": 151, "dropped: malformed": 1, "kept": 150}
    assert "skipped: " in caplog.text
    assert "q.jsonl, row 7: " in caplog.text
    path = written(tmp_path / "q.jsonl", *good[:7], row, row, *good[7:])
    with pytest.raises(BadInput, match=r"q\.jsonl, row 7: .* \(2 of 152 rows are malformed; up to 1% are skipped\)"):
        world.do(collect_queries, key="two", source=Source(path=path))


def test_a_few_malformed_rows_of_a_csv_file_are_skipped_too(world, tmp_path):
    (tmp_path / "q.csv").write_text("query,topic\n" + "x,y\n" * 120 + "x\n" + "x,y\n" * 7)
    made = world.do(collect_queries, source=Source(path=str(tmp_path / "q.csv")))
    assert world.counts(made) == {"read": 128, "dropped: malformed": 1, "kept": 127}


def test_a_row_of_a_parquet_file_that_is_not_utf8_is_skipped_too(world, tmp_path):
    texts = pa.array([b"\xe9t\xe9 is" if n == 1_150 else b"number %d" % n for n in range(1_300)])
    latin = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())
    pq.write_table(pa.table({"query": latin}), tmp_path / "q.parquet")
    source = Source(path=str(tmp_path / "q.parquet"))
    made = world.do(collect_queries, source=source)
    assert world.counts(made) == {"read": 1_300, "dropped: malformed": 1, "kept": 1_299}
    with pytest.raises(BadInput, match=r"q\.parquet, row 1150: field query cannot be read .*utf-8"):
        list(problems_of(source))


def test_a_source_in_which_no_row_has_a_query_is_an_error(world, tmp_path):
    path = written(tmp_path / "q.jsonl", {"query": ""}, {"messages": []})
    message = r"q\.jsonl: none of its 2 rows has a query \(empty: 1, no user turn: 1\): set"
    with pytest.raises(BadInput, match=message):
        world.do(collect_queries, source=Source(path=path))
    with pytest.raises(BadInput, match=message):
        list(problems_of(Source(path=path)))


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n", "\n  \n\t\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_byte_order_mark_and_blank_lines_at_the_end_of_json_lines_are_passed_over(tmp_path, mark, newline, end):
    path = tmp_path / "q.jsonl"
    path.write_bytes((mark + '{"query": "one"}' + newline + '{"query": "two"}' + end).encode())
    assert found(str(path)) == ["one", "two"]
    assert [record for _, record in records(Source(path=str(path)))] == [{"query": "one"}, {"query": "two"}]


def test_a_whole_difficulty_in_a_column_of_floats_is_taken(tmp_path):
    rows = [{"query": "a", "difficulty": 5.0}, {"query": "b", "difficulty": 4.0}, {"query": "c", "difficulty": None}]
    lines = written(tmp_path / "q.jsonl", *rows, '{"query": "d", "difficulty": NaN}')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    decimals = pa.array([Decimal(5), Decimal(4), None], pa.decimal128(5, 2))
    pq.write_table(pa.table({"query": ["a", "b", "c"], "difficulty": decimals}), tmp_path / "decimal.parquet")
    (tmp_path / "q.csv").write_text("query,difficulty\na,5.0\nb,4\nc,\nd,NaN\n")
    for path in (lines, *(str(tmp_path / name) for name in ("q.parquet", "decimal.parquet", "q.csv"))):
        difficulties = [row["difficulty"] for row in queries_of(Source(path=path))]
        assert difficulties[:3] == [5, 4, None]
        assert not any(difficulties[3:])
        assert all(isinstance(each, int) for each in difficulties[:2])


def test_collecting_counts_and_drops_empty_queries(world, tmp_path):
    path = written(tmp_path / "q.jsonl", {"query": "one"}, {"query": " \n"}, {"query": " two "})
    made = world.do(collect_queries, source=Source(path=path, licence="MIT"))
    assert world.counts(made) == {"read": 3, "dropped: empty": 1, "kept": 2}
    assert [(row["query"], row["source"], row["source_row"]) for row in world.rows(made)] == [
        ("one", "q.jsonl", 0),
        ("two", "q.jsonl", 2),
    ]
