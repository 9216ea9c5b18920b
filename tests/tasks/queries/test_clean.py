from __future__ import annotations

from collections import Counter

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
        "why  is the SKY blue at noon?",  # a duplicate, which stays
        "short",
        "long " * 50,
        "Schreibe einen Brief an meine Mutter, die im Krankenhaus liegt.",
        LONG,
        " \x00\ufeff ",
    ]
    first = world.table(QUERIES, rows(query, *texts), key="one")
    second = world.table(QUERIES, rows(query, "Why is the sky blue at noon?", source="g.jsonl"), key="two")
    made = world.do(clean_queries, config=CleanConfig(max_characters=200), sources=(first, second))
    assert world.counts(made) == {
        "read": 8,
        "dropped: empty": 1,
        "dropped: too short": 1,
        "dropped: too long": 1,
        "dropped: language": 1,
        "kept": 4,
    }
    found = [(row["query"], row["source"]) for row in world.rows(made)]
    assert found == [*((text, "f.jsonl") for text in (*texts[:2], LONG)), (texts[0], "g.jsonl")]
    assert bars == {"made": 1.0}


def test_shards_hold_together_what_one_pass_makes(world, query, monkeypatch):
    monkeypatch.setattr("tasks.queries.clean.BATCH_ROWS", 7)
    tables = [
        world.table(QUERIES, rows(query, *(f"{'long ' * (n % 9)}{name} {n}" for n in range(count))), key=name)
        for name, count in (("one", 20), ("two", 0), ("three", 41))
    ]
    given = {"config": CleanConfig(languages=(), max_characters=25), "sources": tables}
    whole = world.do(clean_queries, **given)
    for shards in (2, 5, 100):
        parts = [world.do(clean_queries, key=f"{shards}-{n}", **given, shard=n, shards=shards) for n in range(shards)]
        assert [row for part in parts for row in world.rows(part)] == world.rows(whole)
        added = sum((Counter(world.counts(part)) for part in parts), Counter())
        assert added == Counter(world.counts(whole))
        assert added["read"] == 61


def test_a_text_that_cleaning_changes_gets_the_id_of_the_cleaned_text(world, query):
    text = "one\r\ntwo\x07 cafe\u0301\u200b three"
    (row,) = world.rows(world.do(clean_queries, config=AS_THEY_ARE, sources=(world.table(QUERIES, rows(query, text)),)))
    assert (row["query"], row["query_id"]) == ("one\ntwo café three", query_id("one\ntwo café three"))


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
