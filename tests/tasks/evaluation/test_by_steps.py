from __future__ import annotations

from itertools import pairwise

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.by_steps import by_steps, groups_of


def test_accuracy_and_length_by_number_of_steps():
    steps = {"a": 1, "b": 1, "c": 2, "d": 2, "e": 5}
    grades = pd.DataFrame(
        [(name, right, steps.get(name, 9) * 10) for name in "abcdex" for right in (name in "ab", name == "a")],
        columns=["problem_id", "correct", "thought_tokens"],
    )
    rows = by_steps(grades, steps)  # fewer than thirty problems: one group
    assert [(row["first"], row["last"], row["problems"]) for row in rows] == [(1, 5, 5)]
    many = {f"{name}{n}": number for name, number in steps.items() for n in range(30)}
    copies = pd.concat([grades.assign(problem_id=grades["problem_id"] + str(n)) for n in range(30)])
    rows = by_steps(copies, many)
    assert [(row["first"], row["last"], row["problems"]) for row in rows] == [(1, 1, 60), (2, 2, 60), (5, 5, 30)]
    assert [row["accuracy"] for row in rows] == [0.75, 0, 0]
    assert [row["thought_tokens"] for row in rows] == [10, 20, 50]
    assert rows[0]["accuracy_low"] < 0.75 < rows[0]["accuracy_high"]


def test_problems_without_a_number_of_steps_give_no_rows():
    grades = pd.DataFrame({"problem_id": ["a"], "correct": [True], "thought_tokens": [3]})
    assert by_steps(grades, {}) == []


@given(st.lists(st.integers(0, 12), min_size=1, max_size=300), st.integers(1, 40))
def test_each_problem_is_in_one_group_and_groups_are_large_enough(steps, least):
    groups = groups_of(steps, least)
    held = [sum(first <= number <= last for number in steps) for first, last in groups]
    assert sum(held) == len(steps)
    assert all(last < first for (_, last), (first, _) in pairwise(groups))
    assert len(groups) == 1 or min(held) >= least
