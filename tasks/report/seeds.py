"""Figures over seeds: rows in groups, means with 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from scipy import stats  # type: ignore[import-untyped]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds, by Student's t distribution; NaN for fewer than three seeds.

    Two would have one of 12.7 standard errors, wide enough for shares above 1.
    """
    mean = statistics.fmean(values)
    if len(values) < 3:
        return math.nan, math.nan
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - reach, mean + reach


def interval_reach(values: Sequence[float]) -> float:
    """Half the width of the interval; 0 where there is none, so that a plot has no bar."""
    low, high = interval(values)
    return 0.0 if math.isnan(low) else (high - low) / 2


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """A mean with its interval, if it has one, as text."""
    low, high = interval(values)
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if math.isnan(low) else f"{mean} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


def grouped(rows: Iterable[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The rows by their values of `names`, in the order of their first occurrence."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[tuple(row[name] for name in names)].append(row)
    return found
