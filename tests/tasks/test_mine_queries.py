from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.curate_examples import BadInput
from tasks.mine_queries import QueriesConfig, first_turn, mine, mine_queries, normalised, query_id


def written(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_funnel_counts_every_row_once(world, tmp_path):
    rows = [
        {"query": "Keep me"},
        {"query": "  keep   ME "},  # the same query
        {"query": " \n "},
        {"query": "Too easy", "difficulty": 4},
        {"query": "Hard", "difficulty": 5, "topic": "maths", "reference": "42"},
        {"query": "Held  OUT", "difficulty": 7},
        {"messages": [{"role": "user", "content": "From messages"}]},
    ]
    path = written(tmp_path / "queries.jsonl", *rows)
    held_out = written(tmp_path / "test.jsonl", {"query": "held out"})
    made = world.do(mine_queries, config=QueriesConfig(path=path, held_out=(held_out,), limit=2))
    counts = world.counts(made)
    assert counts == {
        "read": 7,
        "dropped: duplicate": 1,
        "dropped: empty": 1,
        "dropped: too easy": 1,
        "dropped: held out for evaluation": 1,
        "dropped: beyond the limit": 1,
        "kept": 2,
    }
    assert counts["read"] == counts["kept"] + sum(n for name, n in counts.items() if name.startswith("dropped"))
    all_of_them = mine(QueriesConfig(path=path, held_out=(held_out,)), Counter())
    assert {row["query"] for row in all_of_them} == {"Keep me", "Hard", "From messages"}
    hard = next(row for row in all_of_them if row["query"] == "Hard")
    assert (hard["source"], hard["source_row"], hard["reference"]) == ("queries.jsonl", 4, "42")
    assert (hard["difficulty"], hard["topic"]) == (5, "maths")


def test_draws_with_skip_share_nothing_and_cover_all(tmp_path):
    path = written(tmp_path / "q.jsonl", *({"query": f"query {n}"} for n in range(30)))
    draws = [mine(QueriesConfig(path=path, skip=skip, limit=10), Counter()) for skip in (0, 10, 20)]
    assert len({row["query_id"] for draw in draws for row in draw}) == 30
    assert mine(QueriesConfig(path=path, limit=10), Counter()) == draws[0]
    assert [row["source_row"] for row in draws[0]] != sorted(row["source_row"] for row in draws[0])
    assert mine(QueriesConfig(path=path, limit=10, seed=1), Counter()) != draws[0]


def test_the_draw_does_not_depend_on_the_order_of_the_file(tmp_path):
    rows = [{"query": f"query {n}"} for n in range(30)]
    there = mine(QueriesConfig(path=written(tmp_path / "a.jsonl", *rows), limit=9), Counter())
    back = mine(QueriesConfig(path=written(tmp_path / "b.jsonl", *rows[::-1]), limit=9), Counter())
    assert [row["query"] for row in there] == [row["query"] for row in back]


def test_only_the_first_user_turn_counts():
    system = {"role": "system", "content": "be kind"}
    turns = [system, {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert first_turn({"messages": [*turns, {"role": "user", "content": "three"}]}, "here") == "one"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hello"}, "expected a field query or messages, found text"),
        ({}, "found no field"),
        ({"query": 3}, "field query must be str or absent, found int"),
        ({"messages": "hello"}, "field messages must be list or absent, found str"),
        ({"messages": []}, "field messages has no turn with role 'user'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "user", "content": "later"}]},
            "messages",
        ),
        ({"query": "x", "difficulty": "5"}, "field difficulty must be int or absent, found str"),
        ({"query": "x", "difficulty": True}, "field difficulty must be int or absent, found bool"),
        ({"query": "x", "reference": 5}, "field reference must be str or absent, found int"),
        ({"query": "x", "topic": ["y"]}, "field topic must be str or absent, found list"),
        ('{"query": "half \\ud83d"}', "field query holds '\\ud83d', half of a character"),
        ('{"messages": [{"role": "user", "content": "\\ude00"}]}', "field messages holds '\\ude00'"),
        ('{"query": "cut', "no JSON"),
        ("", "no JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_bad_rows_are_named_with_file_row_and_field(tmp_path, row, said):
    path = written(tmp_path / "queries.jsonl", {"query": "good"}, row, {"query": "good too"})
    with pytest.raises(BadInput, match=r"queries\.jsonl, row 1: ") as error:
        mine(QueriesConfig(path=path), Counter())
    assert said in str(error.value)
    good = written(tmp_path / "good.jsonl", {"query": "good"})
    if not ({"difficulty", "reference", "topic"} & set(row)):  # what is held out needs no more than a query
        with pytest.raises(BadInput, match=r"queries\.jsonl, row 1: "):
            mine(QueriesConfig(path=good, held_out=(path,)), Counter())


def test_a_row_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"query": "good"}\n' + '{"query": "é"}\n'.encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.jsonl, row 1: .*utf-8"):
        mine(QueriesConfig(path=path), Counter())


def test_missing_files_and_empty_results_are_told(tmp_path):
    with pytest.raises(BadInput, match=r"query file .*none\.jsonl does not exist"):
        mine(QueriesConfig(path=tmp_path / "none.jsonl"), Counter())
    path = written(tmp_path / "easy.jsonl", {"query": "x", "difficulty": 1})
    with pytest.raises(BadInput, match=r"easy\.jsonl: 1 queries are needed .*found 0 .*too easy.*least_difficulty"):
        mine(QueriesConfig(path=path), Counter())
    with pytest.raises(BadInput, match="skip"):
        mine(QueriesConfig(path=path, least_difficulty=0, skip=1), Counter())


def test_fewer_queries_than_must_be_left_are_an_error(tmp_path):
    path = written(tmp_path / "few.jsonl", *({"query": f"q{n}"} for n in range(9)))
    config = QueriesConfig(path=path, skip=4, limit=5, least_queries=5)
    assert len(mine(config, Counter())) == 5
    with pytest.raises(BadInput, match=r"few\.jsonl: 11 queries are needed \(skip 6, then 5\), found 9 "):
        mine(config.model_copy(update={"skip": 6}), Counter())


def test_the_queries_of_another_file_can_be_left_out(tmp_path):
    path = written(tmp_path / "all.jsonl", *({"query": f"q{n}"} for n in range(9)))
    test = written(tmp_path / "test.jsonl", {"query": "Q3"}, {"query": "q5 "})
    config = QueriesConfig(path=path).without(test)
    assert {row["query"] for row in mine(config, Counter())} == {f"q{n}" for n in range(9)} - {"q3", "q5"}
    assert config.without(test) == config


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_normalising_is_idempotent_and_blind_to_case_and_blanks(text):
    once = normalised(text)
    assert query_id(f"\t{text}\n ") == query_id(text)
    assert query_id(once) == query_id(text) or normalised(once) != once  # NFKC after folding may fold once more
    assert len(query_id(text)) == 16
