from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.store.schemas import QUERIES
from tasks.queries.clean import AS_THEY_ARE, CleanConfig, clean_queries, cleaned, language_share
from tasks.queries.identity import query_id

LONG = "Write a Python function that takes a list of numbers and returns the largest sum of neighbours in it, please"


def rows(query, *texts, source="f.jsonl"):
    return [query(query_id(text), text, source=source, source_row=n) for n, text in enumerate(texts)]


def test_the_funnel_counts_every_row_once(world, query, bars):
    texts = [
        "Why is the sky blue at noon?",
        "why  is the SKY blue at noon?",  # a duplicate
        "short",
        "long " * 50,
        "Schreibe einen Brief an meine Mutter, die im Krankenhaus liegt.",
        LONG,
        LONG.replace("largest", "smallest"),  # a near-duplicate
        " \x00\ufeff ",
    ]
    first = world.table(QUERIES, rows(query, *texts), key="one")
    second = world.table(QUERIES, rows(query, "Why is the sky blue at noon?", source="g.jsonl"), key="two")
    config = CleanConfig(max_characters=200, near_duplicates=0.6)
    made = world.do(clean_queries, config=config, sources=(first, second))
    assert world.counts(made) == {
        "read": 9,
        "dropped: empty": 1,
        "dropped: too short": 1,
        "dropped: too long": 1,
        "dropped: language": 1,
        "dropped: duplicate": 2,
        "dropped: near-duplicate": 1,
        "kept": 2,
    }
    assert [(row["query"], row["source"]) for row in world.rows(made)] == [(texts[0], "f.jsonl"), (LONG, "f.jsonl")]
    assert bars == {"made": 1.0, "made: near-duplicates": 1.0}


def test_only_exact_duplicates_of_problems_are_dropped(world, query):
    texts = ["1 + 1", "1 + 2", "１ + 1", "été", "?"]
    made = world.do(clean_queries, config=AS_THEY_ARE, sources=(world.table(QUERIES, rows(query, *texts)),))
    assert [row["query"] for row in world.rows(made)] == ["1 + 1", "1 + 2", "été", "?"]


def test_a_text_that_cleaning_changes_gets_the_id_of_the_cleaned_text(world, query):
    text = "one\r\ntwo\x07 cafe\u0301\u200b three"
    (row,) = world.rows(world.do(clean_queries, config=AS_THEY_ARE, sources=(world.table(QUERIES, rows(query, text)),)))
    assert (row["query"], row["query_id"]) == ("one\ntwo café three", query_id("one\ntwo café three"))


def test_fates_are_right_across_batches(world, query, monkeypatch):
    monkeypatch.setattr("tasks.queries.clean.BATCH_ROWS", 7)
    texts = [f"question number {n % 40} about {'x' * (n % 40)}" for n in range(60)]
    made = world.do(
        clean_queries,
        config=CleanConfig(languages=(), near_duplicates=None),
        sources=(world.table(QUERIES, rows(query, *texts)),),
    )
    assert [row["source_row"] for row in world.rows(made)] == list(range(40))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Fibonacci in C", True),
        ("hi", True),
        ("Who wrote Les Misérables?", True),
        ("Compute $\\int_0^1 x^2 dx$", True),
        ("def f(x):\n    return x + 1", True),
        ("Напиши стихотворение о море", False),
        ("写一首关于大海的诗", False),
        ("Scrivi una poesia sul mare", False),
        ("Was ist das für ein Gerät, und wie benutze ich es?", False),
    ],
)
def test_the_language_filter_works_on_short_queries(text, kept):
    assert (language_share(text, ("en",)) >= CleanConfig().min_language) == kept


def test_an_unknown_language_is_named():
    with pytest.raises(ValueError, match=r"tlh not supported; expected some of .*en"):
        language_share("nuqneH", ("tlh",))
    with pytest.raises(ValueError, match="English: expected ISO 639-1 codes"):
        CleanConfig(languages=("English",))


@given(st.text())
def test_cleaning_is_idempotent(text):
    assert cleaned(cleaned(text)) == cleaned(text)
