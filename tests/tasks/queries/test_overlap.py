from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.queries.overlap import (
    RECALL,
    VALUES,
    Contained,
    Hashed,
    NearDuplicates,
    band_width,
    chunks,
    near_duplicates,
    words,
)

SPOKEN = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=7)


def made_up(count: int, length: int = 40, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(5_000)}" for _ in range(length)) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "as_words", "as_chunks"),
    [
        ("Hello, WORLD!", ["hello", "world"], ["hello", "world"]),
        ("Find $x^2$ now.", ["find", "x", "2", "now"], ["find", "x2", "now"]),
        ("$x^{2}-5 x$ 5x", ["x", "2", "5", "x", "5", "x"], ["x25", "x", "5x"]),
        ("2⁵ H₂O + 2½", ["2", "5", "h2o", "2", "1", "2"], ["25", "h2o", "212"]),
        ("١٢ १२ １２", ["12"] * 3, ["12"] * 3),
        ("हिन्दी की", ["हिन्दी", "की"], ["हिन्दी", "की"]),
        ("ខ្មែរ", ["ខ", "្", "ម", "ែ", "រ"], ["ខ្មែរ"]),
        ("ﬁne\u00a0snake_case", ["fine", "snake", "case"], ["fine", "snakecase"]),
        ("写诗 now", ["写", "诗", "now"], ["写", "诗", "now"]),
        ("?? !", ["??!"], []),
        (" \n", [], []),
    ],
)
def test_words_and_chunks(text, as_words, as_chunks):
    assert (words(text), chunks(text)) == (as_words, as_chunks)


@pytest.mark.parametrize("invisible", ["\xad", "\u200b", "\u200c", "\u200d", "\u200f", "\u2060", "\ufeff", "\ufe0f"])
def test_invisible_characters_split_no_word(invisible):
    text = f"to{invisible}day we{invisible} rest"
    assert words(text) == chunks(text) == ["today", "we", "rest"]


@settings(max_examples=300, deadline=None)
@given(st.lists(SPOKEN, min_size=1, max_size=6), st.integers(1, 4))
def test_hashes_are_equal_if_and_only_if_what_they_hash_is(texts, n):
    """Against the plain definitions of n-grams, whole texts, and texts with a word masked or deleted."""
    hashed = Hashed.of(texts)
    numbers = hashed.rows().tolist()
    assert numbers == [number for number, text in enumerate(texts) for _ in text]
    places = [(text, i) for text in texts for i in range(len(text))]
    plain = {
        "masked": [(*text[:i], None, *text[i + 1 :]) for text, i in places],
        "whole": [tuple(text) for text in texts],
        "shortened": [(*text[:i], *text[i + 1 :]) for text, i in places],
        "ngrams": [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)],
    }
    grams, rows = hashed.ngrams(n)
    assert rows.tolist() == [number for number, text in enumerate(texts) for _ in range(len(text) - n + 1)]
    ours = {"masked": hashed.masked(), "whole": hashed.totals(), "shortened": hashed.shortened(), "ngrams": grams}
    for kind, meant in plain.items():
        hashes = ours[kind].tolist()
        assert len(set(zip(meant, hashes, strict=True))) == len(set(meant)) == len(set(hashes)), kind
    both = [*plain["whole"], *plain["shortened"]], [*ours["whole"].tolist(), *ours["shortened"].tolist()]
    assert len(set(zip(*both, strict=True))) == len(set(both[0])) == len(set(both[1]))


@settings(max_examples=300, deadline=None)
@given(st.lists(SPOKEN, min_size=1, max_size=6), st.lists(SPOKEN, min_size=1, max_size=6), st.integers(1, 4))
def test_contained_texts_are_found_as_by_comparing_all(texts, sought, least):
    long_enough = [number for number, text in enumerate(sought) if len(text) >= least]
    found = Contained(Hashed.of(sought), np.array(long_enough, np.int64)).of(Hashed.of(texts))
    pairs = {(row, tuple(sought[number])) for row, number in zip(*(each.tolist() for each in found), strict=True)}
    assert pairs == {
        (row, tuple(sought[number]))
        for row, text in enumerate(texts)
        for number in long_enough
        if any(text[i : i + len(sought[number])] == sought[number] for i in range(len(text)))
    }


def test_a_text_shorter_than_a_shingle_is_one_shingle():
    shingles = Hashed.of([["a"], [], ["a", "b", "c", "d"], ["a"]]).shingles()
    assert np.diff(shingles.ends).tolist() == [1, 0, 2, 1]
    assert shingles.hashes[0] == shingles.hashes[3]


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_bands_meet_the_recall(threshold):
    width = band_width(threshold)
    assert 1 - (1 - threshold**width) ** (VALUES // width) >= RECALL


def test_near_duplicates_are_found_and_others_are_not():
    texts = made_up(300)
    changed = [" ".join(["new", *text.split()[1:]]) for text in texts[:50]]
    pairs = near_duplicates([*texts, *changed, "", "  ", "two words", "Two WORDS!"], 0.8)
    assert {(a, b) for a, b, _ in pairs} == {(n, 300 + n) for n in range(50)} | {(352, 353)}
    assert all(0.8 <= similarity <= 1 for _, _, similarity in pairs)
    assert near_duplicates([], 0.8) == near_duplicates(["alone"], 0.8) == []


def test_the_stream_on_disk_finds_what_the_list_finds(tmp_path: Path):
    texts = made_up(400)
    texts += [" ".join(["new", *text.split()[1:]]) for text in texts[::4]] + texts[:3]
    seen = NearDuplicates(tmp_path, 0.8)
    for start in range(0, len(texts), 70):
        part = texts[start : start + 70]
        seen.add(part, 2 * np.arange(start, start + len(part)))
    assert seen.later().tolist() == [2 * number for number in sorted({b for _, b, _ in near_duplicates(texts, 0.8)})]
    assert NearDuplicates(tmp_path / "none", 0.8).later().tolist() == []
