from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.store.schemas import QUERIES
from tasks.queries.clean import AS_THEY_ARE, CleanConfig, clean_queries
from tasks.queries.distinct import drop_duplicates
from tasks.queries.identity import normalised, query_id, words_and_symbols

DIFFERENT = [
    ("2⁵", "25"),
    ("x²", "x2"),
    ("H₂O", "H2O"),
    ("½", "1/2"),
    ("3½", "31/2"),
    ("①", "1"),
    ("Ⅷ", "VIII"),
    ("ℝ", "R"),
    ("𝐱", "x"),
    ("㎡", "m2"),
    ("ª", "a"),
    ("™", "tm"),
    ("résumé", "resume"),
    ("Maße", "Masse"),
    ("x", "X"),
    ("Δ", "δ"),
    ("Mb", "MB"),
    ("mW", "MW"),
    ("5 - 3", "5 + 3"),
    ("-5", "5"),
    ("a ≤ b", "a ≥ b"),
    ("∀ n", "∃ n"),
    ("¬ p", "p"),
    ("√2", "2"),
    ("$5", "€5"),
    ("5%", "5"),
    ("5!", "5"),
    ("1.5", "1,5"),
    ("(2+3)*4", "2+(3*4)"),
    ("C++", "C"),
    ("C#", "C"),
]
SAME = [
    ("１ ＋ １", "1 + 1"),
    ("ｘ = 2", "x = 2"),
    ("ﬁnd the oﬀer", "find the offer"),
    ("ｶﾞ", "ガ"),
    ("cafe\u0301", "café"),
    ("5\u00a0km", "5 km"),
    ("a\t\n b", "a b"),
    ("Why IS the SKY blue", "why IS the sky blue"),
    ("Is IT a dog", "is IT a dog"),
    ("A dog and I", "a dog and i"),
    ("ÉCOLE", "école"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
@pytest.mark.parametrize("config", [AS_THEY_ARE, CleanConfig(languages=())], ids=["exact", "near-duplicates too"])
def test_deduplication_keeps_characters_that_matter(world, query, one, other, config):
    texts = [f"What is the value of {one} here?", f"What is the value of {other} here?"]
    rows = [query(query_id(text), text) for text in texts]
    usable = world.do(clean_queries, "cleaned", config=config, sources=(world.table(QUERIES, rows),))
    made = world.do(drop_duplicates, near_duplicates=config.near_duplicates, queries=[usable])
    assert [row["query"] for row in world.rows(made)] == [unicodedata.normalize("NFC", text) for text in texts]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_typography_case_and_white_space_make_no_difference(one, other):
    assert query_id(one) == query_id(other)


def test_near_duplicates_are_compared_by_words_and_symbols():
    assert words_and_symbols("Hello, (dear) WORLD: it's 2⁵!") == ["hello", "dear", "world", "it", "s", "2⁵"]
    assert words_and_symbols("f(x) = 1.5*(2+n), 写诗") == [*"f(x=", "1", ".", "5", *"*(2+n", "写", "诗"]


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_normalising_is_idempotent_and_ignores_outer_white_space(text):
    once = normalised(text)
    assert query_id(f"\t{text}\n ") == query_id(text)
    assert normalised(once) == once or normalised(normalised(once)) == normalised(once)
    assert len(query_id(text)) == 16
