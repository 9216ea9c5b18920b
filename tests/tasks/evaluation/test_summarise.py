from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.summarise import gain, interval, summarise, weighted_gain


def grades(by_problem: dict[str, list[int]], **columns: float) -> pd.DataFrame:
    plain = {"thought_tokens": 10, "solution_tokens": 5, "truncated": False, "malformed": False, **columns}
    rows = [{"problem_id": p, "correct": bool(c), **plain} for p, marks in by_problem.items() for c in marks]
    return pd.DataFrame(rows)


def test_the_interval_of_coin_tosses_is_as_the_normal_approximation_says():
    tossed = np.array([0.0, 1.0] * 200)
    low, high = interval(tossed)
    half = 1.96 * 0.5 / np.sqrt(400)  # normal approximation of the mean of 400 tosses
    assert low == pytest.approx(0.5 - half, abs=0.004)
    assert high == pytest.approx(0.5 + half, abs=0.004)
    assert interval(tossed) == (low, high)  # seeded


def test_the_interval_covers_the_mean_as_often_as_it_should():
    rng = np.random.default_rng(1)
    hits = sum(low <= 0.3 <= high for low, high in (interval((rng.random(80) < 0.3).astype(float)) for _ in range(60)))
    assert hits >= 51  # 57 of 60 expected; fewer than 51 has a chance below 1 %


U = 1.959964**2 / (10 + 1.959964**2)  # Wilson's upper limit for none of ten, 0.2775


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0] * 10, (0, U)),
        ([1.0] * 10, (1 - U, 1)),
        ([0.5] * 10, (0.5 - U / 2, 0.5 + U / 2)),
        ([0.0], (0, 0.7935)),
        ([0.25], (0.25 - 0.25 * 0.7935, 0.25 + 0.75 * 0.7935)),
    ],
)
def test_an_interval_without_spread_is_wilsons(values, expected):
    assert interval(np.array(values)) == pytest.approx(expected, abs=1e-4)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_an_interval_without_spread_has_the_mean_in_it_and_shrinks(problems, value):
    low, high = interval(np.full(problems, value))
    assert -1e-9 <= low <= value + 1e-9
    assert value - 1e-9 <= high <= 1 + 1e-9
    assert high - low < 4 / (problems + 3)
    assert high - low > 0


def test_equal_lengths_have_no_range_that_an_interval_could_come_from():
    assert interval(np.array([7.0] * 10), within=None) == (7.0, 7.0)


def test_a_stage_that_is_all_wrong_or_all_right_has_an_interval():
    wrong, right = (grades({str(n): [mark] * 4 for n in range(10)}) for mark in (0, 1))
    figures = [summarise("x", each, None) for each in (wrong, right)]
    assert [(each["accuracy_low"], each["accuracy_high"]) for each in figures] == [
        pytest.approx((0, U), abs=1e-4),
        pytest.approx((1 - U, 1), abs=1e-4),
    ]


def test_a_gain_that_is_equal_on_all_problems_has_an_interval():
    wrong, right = (grades({str(n): [mark] for n in range(10)}) for mark in (0, 1))
    assert gain(wrong, wrong) == pytest.approx({"gain": 0, "low": -U, "high": U}, abs=1e-4)
    assert gain(wrong, right) == pytest.approx({"gain": 1, "low": 1 - 2 * U, "high": 1}, abs=1e-4)
    zero, one, equal = np.zeros(10), np.ones(10), np.arange(1.0, 11.0)
    assert weighted_gain(zero, one, zero, one) == pytest.approx((0, -U, U), abs=1e-4)
    assert weighted_gain(zero, equal, one, equal) == pytest.approx((1, 1 - 2 * U, 1), abs=1e-4)
    tens = weighted_gain(10 * one, one, 10 * one, equal, (1.0, 10.0))
    assert tens == pytest.approx((0, -9 * U, 9 * U), abs=1e-3)


def test_samples_of_a_problem_stay_together():
    """1,000 samples of two problems say no more about the mean over problems than two samples do."""
    many = summarise("x", grades({"a": [1] * 500, "b": [0] * 500}), None)
    assert (many["accuracy_low"], many["accuracy_high"]) == (0.0, 1.0)
    assert (many["problems"], many["samples"], many["greedy_accuracy"]) == (2, 1000, None)


def test_the_summary_holds_means_over_problems():
    sampled = grades({"a": [1, 1, 1, 1], "b": [1, 0, 0, 0], "c": [0, 0, 0, 1]})
    sampled.loc[0, ["thought_tokens", "truncated", "malformed"]] = [130, True, True]
    found = summarise("sft", sampled, grades({"a": [1], "b": [0], "c": [1]}))
    assert found["accuracy"] == 0.5
    assert found["accuracy_low"] == 0.25
    assert found["accuracy_high"] == 1.0
    assert found["greedy_accuracy"] == pytest.approx(2 / 3)
    assert (found["thought_tokens"], found["solution_tokens"]) == (20.0, 5.0)
    assert found["tokens_low"] <= 25.0 <= found["tokens_high"]
    assert found["truncated"] == found["malformed"] == pytest.approx(1 / 12)
    assert found["name"] == "sft"


def test_the_gain_is_paired():
    before = grades({str(n): [n % 2] for n in range(100)})
    after = grades({str(n): [1 if n < 10 else n % 2] for n in reversed(range(100))})
    found = gain(before, after)
    assert found["gain"] == pytest.approx(0.05)
    assert found["low"] >= 0.0  # unpaired, the interval of a 5 % difference of 100 coins would reach far below 0
    same = gain(before, before)
    assert (same["gain"], same["low"], same["high"]) == (0, -same["high"], pytest.approx(0.037, abs=1e-3))
