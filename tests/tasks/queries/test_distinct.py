from __future__ import annotations

from infra.store.schemas import QUERIES
from tasks.queries.distinct import drop_duplicates
from tasks.queries.identity import query_id

LONG = "Write a Python function that takes a list of numbers and returns the largest sum of neighbours in it, please"


def rows(query, *texts, source="f.jsonl"):
    return [query(query_id(text), text, source=source, source_row=n) for n, text in enumerate(texts)]


def test_of_copies_the_first_is_kept_in_whichever_table_it_is(world, query, bars):
    texts = [
        "Why is the sky blue at noon?",
        "why  is the SKY blue at noon?",
        LONG,
        LONG.replace("largest", "smallest"),
    ]
    first = world.table(QUERIES, rows(query, *texts), key="one")
    second = world.table(QUERIES, rows(query, "Why is the sky blue at noon?", "A new one", source="g.jsonl"), key="two")
    made = world.do(drop_duplicates, near_duplicates=0.6, queries=[first, second])
    assert world.counts(made) == {"read": 6, "dropped: duplicate": 2, "dropped: near-duplicate": 1, "kept": 3}
    kept = [(texts[0], "f.jsonl"), (LONG, "f.jsonl"), ("A new one", "g.jsonl")]
    assert [(row["query"], row["source"]) for row in world.rows(made)] == kept
    assert bars == {"made": 1.0}


def test_only_exact_duplicates_of_problems_are_dropped(world, query):
    texts = ["1 + 1", "1 + 2", "\uff11 + 1", "\u00e9t\u00e9", "?"]
    made = world.do(drop_duplicates, near_duplicates=None, queries=[world.table(QUERIES, rows(query, *texts))])
    assert [row["query"] for row in world.rows(made)] == ["1 + 1", "1 + 2", "\u00e9t\u00e9", "?"]


def test_copies_are_found_across_batches(world, query, monkeypatch):
    monkeypatch.setattr("tasks.queries.distinct.BATCH_ROWS", 7)
    texts = [f"question number {n % 40} about {chr(97 + n % 40 % 26) * (n % 40)}" for n in range(60)]
    for number, near in enumerate((None, 1.0)):
        tables = [world.table(QUERIES, rows(query, *texts), key=str(number))]
        made = world.do(drop_duplicates, key=str(number), near_duplicates=near, queries=tables)
        assert [row["source_row"] for row in world.rows(made)] == list(range(40))


def test_no_queries_are_no_error(world):
    made = world.do(drop_duplicates, near_duplicates=0.8, queries=[world.table(QUERIES, [])])
    assert world.counts(made) == {"read": 0, "kept": 0}
