"""Accuracy and length of the thoughts against the number of steps that a problem takes, where its source states it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import pandas as pd

from tasks.evaluation.summarise import interval

Group: TypeAlias = tuple[int, int]
LEAST = 30  # problems in a group


def groups_of(steps: Iterable[int], least: int = LEAST) -> list[Group]:
    """Ranges of neighbouring numbers of steps (first, last), each with at least `least` problems if there are so many.

    The ranges depend only on the problems, so that all models are compared on the same ones.
    """
    groups: list[Group] = []
    first, held = None, 0
    for number, count in sorted(Counter(steps).items()):
        first, held = number if first is None else first, held + count
        if held >= least:
            groups.append((first, number))
            first, held = None, 0
    if first is not None:  # too few are left: they join the last group
        begin = groups.pop()[0] if groups else first
        groups.append((begin, number))
    return groups


def by_steps(grades: pd.DataFrame, steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each range of numbers of steps: accuracy with its 95 % interval, and mean thought tokens per sample.

    Args:
        grades: problem_id, correct and thought_tokens of each sample.
        steps: the number of steps of each problem that states it; the others are left out.
    """
    known = grades.assign(steps=grades["problem_id"].map(steps)).dropna(subset=["steps"])
    rows = []
    for first, last in groups_of(steps.values()):
        held = known[known["steps"].between(first, last)]
        per_problem = held.groupby("problem_id")["correct"].mean().to_numpy(dtype=float)
        if not len(per_problem):
            continue
        low, high = interval(per_problem)
        rows.append(
            {
                "first": first,
                "last": last,
                "problems": len(per_problem),
                "accuracy": float(per_problem.mean()),
                "accuracy_low": low,
                "accuracy_high": high,
                "thought_tokens": float(held["thought_tokens"].mean()),
            }
        )
    return rows
