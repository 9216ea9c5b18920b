from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_for_tests import KEY, SECRET, boto_client, s3_bucket, s3_url

from infra.errors import BadInput
from tasks.queries.collect import collect_queries
from tasks.queries.sources import Source, problems_of, queries_of

__all__ = ["s3_bucket", "s3_url"]
RECORDS = {
    "messages": {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "What is it?"}]},
    "conversations": {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "That."}]},
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
    turns = [{"role": role, "content": role + str(n)} for n, role in enumerate(("assistant", "user", "user"))]
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
        ({"text": "hello"}, "expected a field query or messages or conversations or instruction, found text: set"),
        ({}, "found no field"),
        ({"query": 3}, "field query must be str or absent, found int"),
        ({"query": []}, "field query must be str or absent, found list"),
        ({"messages": "hello"}, "field messages must be list or absent, found str"),
        ({"messages": []}, "field messages has no turn with role 'user'"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "field conversations has no turn with from 'human'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "the first user turn has no string content",
        ),
        ({"instruction": "x", "input": 5}, "field input must be str or absent, found int"),
        ({"query": "x", "difficulty": "5"}, "field difficulty must be int or absent, found str"),
        ({"query": "x", "difficulty": True}, "field difficulty must be int or absent, found bool"),
        ({"query": "x", "difficulty": 8}, "field difficulty must be 0 to 7"),
        ({"query": "x", "reference": 5}, "field reference must be str or absent, found int"),
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
        ("query,difficulty\nx,hard\n", r"row 0: field difficulty must be a whole number or empty, found 'hard'"),
        ('query\n"open\n', r"not CSV in UTF-8"),
        ("text\nx\n", r"row 0: expected a field query"),
    ],
)
def test_a_bad_csv_file_is_named(tmp_path, text, message):
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(BadInput, match=rf"q\.csv(, |: ){message}"):
        found(str(tmp_path / "q.csv"))


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
    ],
)
def test_bad_settings_of_a_source_are_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        Source(**given)


def test_a_data_set_is_streamed_at_its_revision(monkeypatch):
    calls: list[Any] = []

    def load(*given: Any, **more: Any) -> Any:
        calls.append((given, more))
        return iter([RECORDS["conversations"], RECORDS["alpaca"]])

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source(dataset="org/name@0123abc", subset="main", split="test")
    rows = list(queries_of(source))
    assert calls == [(("org/name", "main"), {"split": "test", "revision": "0123abc", "streaming": True})]
    assert [(row["query"], row["source"], row["source_row"]) for row in rows] == [
        ("What is it?", "org/name", 0),
        ("What is it?", "org/name", 1),
    ]
    digests = {
        source.model_copy(update=change).contents()
        for change in ({}, {"dataset": "org/name@4567def"}, {"subset": "other"}, {"subset": None}, {"split": "train"})
    }
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("'org/name' is gated"), "no access.*accept its terms.*HF_TOKEN"),
        (ValueError("Unknown split"), "Unknown split.*check subset and split"),
        (ConnectionError("offline"), "the hub cannot be reached"),
    ],
)
def test_the_reason_why_a_data_set_cannot_be_read_is_named(monkeypatch, error, message):
    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    kind = ConnectionError if isinstance(error, ConnectionError) else BadInput  # an outage is transient
    with pytest.raises(kind, match=rf"(?s)org/name@0123abc:train: .*{message}"):
        list(queries_of(Source(dataset="org/name@0123abc")))


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


def test_collecting_counts_and_drops_empty_queries(world, tmp_path):
    path = written(tmp_path / "q.jsonl", {"query": "one"}, {"query": " \n"}, {"query": " two "})
    made = world.do(collect_queries, source=Source(path=path, licence="MIT"))
    assert world.counts(made) == {"read": 3, "dropped: empty": 1, "kept": 2}
    assert [(row["query"], row["source"], row["source_row"]) for row in world.rows(made)] == [
        ("one", "q.jsonl", 0),
        ("two", "q.jsonl", 2),
    ]
