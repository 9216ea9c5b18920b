"""A stage's figures from its grades: accuracy with its 95 % interval, lengths, truncated and malformed shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats  # type: ignore[import-untyped]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Range: TypeAlias = tuple[float, float]
SHARE: Range = (0.0, 1.0)
RESAMPLES = 9_999
BATCH = 500  # resamples held in memory at once; changes no figure


def interval(per_problem: Floats, within: Range | None = SHARE) -> tuple[float, float]:
    """95 % bootstrap interval (percentile method, seeded) of the mean of the problems' values.

    Problems are resampled, not samples, so that the samples of a problem stay together. If all have the same value, see
    `interval_without_spread`.

    Args:
        within: the least and the largest value that a problem can have; None if there are none, as for lengths. Then
            the interval of equal values is a point.
    """
    mean = float(per_problem.mean())
    if len(per_problem) < 2 or float(np.ptp(per_problem)) == 0.0:
        return (mean, mean) if within is None else interval_without_spread(mean, len(per_problem), within)
    return _bounds((per_problem,), np.mean)


def interval_without_spread(value: float, problems: int, within: Range, level: float = 0.95) -> tuple[float, float]:
    """The interval of a mean over problems that all have this value, where resampling shows no spread.

    At most u = z^2 / (n + z^2) of all problems have another value (Wilson's upper limit for none of n), which is one in
    the range `within`. So all right is Wilson's interval, 1 - u to 1, and all wrong is 0 to u.
    """
    z = float(stats.norm.ppf((1 + level) / 2))
    others = z**2 / (problems + z**2)
    least, largest = within
    return min(value, value - others * (value - least)), max(value, value + others * (largest - value))


def weighted_gain(
    before: Floats, before_weights: Floats, after: Floats, after_weights: Floats, within: Range = SHARE
) -> tuple[float, float, float]:
    """The gain in a weighted mean over problems, and its 95 % interval; one value per problem each.

    `within`: as for `interval`, of `before` and `after`. For a gain without spread over resampled problems see
    `interval_without_spread`.
    """

    def gained(b: Floats, v: Floats, a: Floats, w: Floats, axis: int = -1) -> Any:
        return (a * w).sum(axis=axis) / w.sum(axis=axis) - (b * v).sum(axis=axis) / v.sum(axis=axis)

    data = (before, before_weights, after, after_weights)
    gain = float(gained(*data))
    paired = float(np.ptp(after - before)) == 0.0 and all(np.ptp(each) == 0 for each in data[1::2])
    constant = all(np.ptp(each) == 0 for each in data[::2])
    if len(before) < 2 or paired or constant:
        return gain, *interval_without_spread(gain, len(before), _of_differences(within))
    return gain, *_bounds(data, gained)


def _of_differences(within: Range) -> Range:
    """The range of a difference between two values in a range."""
    span = within[1] - within[0]
    return -span, span


def _bounds(data: tuple[Floats, ...], statistic: Callable[..., Any]) -> tuple[float, float]:
    """The 2.5th and 97.5th percentiles of a statistic over resampled problems; `data` has one value per problem."""
    found = stats.bootstrap(
        data,
        statistic,
        paired=len(data) > 1,
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def summarise(name: str, grades: pd.DataFrame, greedy: pd.DataFrame | None) -> dict[str, Any]:
    """One entry of summary.json's `stages`. Shares and accuracies are in 0..1, lengths are mean tokens per response.

    `tokens_low` and `tokens_high` are the 95 % interval of the length of thoughts and solution together.
    """
    per_problem = grades.groupby("problem_id")["correct"].mean().to_numpy(dtype=float)
    low, high = interval(per_problem)
    tokens = (grades["thought_tokens"] + grades["solution_tokens"]).groupby(grades["problem_id"]).mean()
    tokens_low, tokens_high = interval(tokens.to_numpy(dtype=float), within=None)
    return {
        "name": name,
        "problems": len(per_problem),
        "samples": len(grades),
        "accuracy": float(per_problem.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "greedy_accuracy": float(greedy["correct"].mean()) if greedy is not None else None,
        "thought_tokens": float(grades["thought_tokens"].mean()),
        "solution_tokens": float(grades["solution_tokens"].mean()),
        "tokens_low": tokens_low,
        "tokens_high": tokens_high,
        "truncated": float(grades["truncated"].mean()),
        "malformed": float(grades["malformed"].mean()),
    }


def gain(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, float]:
    """The paired difference in accuracy on the problems that both have, with its 95 % interval (see `interval`)."""
    means = [grades.groupby("problem_id")["correct"].mean() for grades in (before, after)]
    difference = (means[1] - means[0]).dropna().to_numpy(dtype=float)
    low, high = interval(difference, _of_differences(SHARE))
    return {"gain": float(difference.mean()), "low": low, "high": high}
