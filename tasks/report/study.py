"""A study's figures over seeds: means with 95 % intervals, differences between variants seed by seed, and curves."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from scipy import stats  # type: ignore[import-untyped]

from infra.text.markdown import as_text, markdown_table
from tasks.report.plot import svg

Row: TypeAlias = dict[str, Any]
FIGURES = {
    "accuracy": "accuracy (sampled)",
    "greedy_accuracy": "greedy",
    "thought_tokens": "thought tokens",
    "solution_tokens": "solution tokens",
    "malformed": "malformed",
}
"""The figures of a stage in summary.json, and their titles here."""


def stages_of(summary: Mapping[str, Any], arm: str, seed: int) -> list[Row]:
    """The figures of each stage of a cell, a row each."""
    return [
        {"arm": arm, "seed": seed, "stage": stage["name"], **{name: stage[name] for name in FIGURES}}
        for stage in summary["stages"]
    ]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds, by Student's t distribution; NaN for a single seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return math.nan, math.nan
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - reach, mean + reach


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each arm and stage, in the order of their first occurrence."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["arm"], row["stage"]].append(row)
    return found


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """A mean with its interval, as text."""
    low, high = interval(values)
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if math.isnan(low) else f"{mean} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


def table_rows(rows: Iterable[Row]) -> list[dict[str, str]]:
    """A row for each arm and stage: means over seeds with 95 % intervals."""
    made = []
    for (arm, stage), found in grouped(rows).items():
        shown = {"arm": arm, "stage": stage, "seeds": str(len(found))}
        for name, title in FIGURES.items():
            values = [row[name] for row in found]
            shown[title] = spread(values) if "accuracy" in name else f"{statistics.fmean(values):.3g}"
        made.append(shown)
    return made


def last_stages(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """The last stage's row of each arm, by seed."""
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        found[row["arm"]][row["seed"]] = row  # the last one stays
    return found


def difference_rows(rows: Sequence[Row], first: str) -> list[dict[str, str]]:
    """Differences in accuracy in points, seed by seed.

    They are those of each arm's last stage from its SFT, and of its SFT and last stage from those of the arm `first`.
    Only SFT is compared of an arm that ends with it.
    """
    last = last_stages(rows)
    sft = {(row["arm"], row["seed"]): row for row in rows if row["stage"] == "sft"}
    made = []
    for arm, found in last.items():
        online = {seed: row for seed, row in found.items() if row["stage"] != "sft"}
        pairs = {
            "last stage - SFT": [(row, sft[arm, seed]) for seed, row in online.items() if (arm, seed) in sft],
            f"SFT - that of {first}": [(sft[arm, seed], sft[first, seed]) for seed in found if (first, seed) in sft],
            f"last stage - that of {first}": [
                (row, last[first][seed]) for seed, row in online.items() if seed in last.get(first, {})
            ],
        }
        for what, both in pairs.items():
            if both and (arm != first or not what.endswith(first)):
                shown = {"arm": arm, "difference, points": what, "seeds": str(len(both))}
                for name, title in list(FIGURES.items())[:2]:
                    shown[title] = spread([a[name] - b[name] for a, b in both], 100, 1)
                made.append(shown)
    return made


def study_page(table: Sequence[Row], differences: Sequence[Row], failed: Mapping[str, str]) -> str:
    """The tables as Markdown. Intervals are over seeds."""
    parts = ["Means over seeds, with 95 % intervals where there are several seeds.", markdown_table(table)]
    if differences:
        parts += ["Differences in percentage points, seed by seed.", markdown_table(differences)]
    if failed:
        parts.append("\n".join(f"- {as_text(cell)} failed: {as_text(reason)}" for cell, reason in failed.items()))
    return "\n\n".join(parts) + "\n"


def study_plot(rows: Sequence[Row]) -> bytes:
    """Accuracy and thoughts' length along the stages, a curve for each arm, with 95 % intervals over seeds."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    found = grouped(rows)

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 2)
        for axes, name in zip(panels, ("accuracy", "thought_tokens"), strict=True):
            for number, arm in enumerate(arms):
                shown = [stage for stage in stages if (arm, stage) in found]
                values = [[row[name] for row in found[arm, stage]] for stage in shown]
                means = [statistics.fmean(each) for each in values]
                ends = [interval(each)[1] for each in values]
                reach = [0.0 if math.isnan(end) else end - mean for end, mean in zip(ends, means, strict=True)]
                places = [stages.index(stage) + 0.04 * (number - len(arms) / 2) for stage in shown]
                axes.errorbar(places, means, yerr=reach, fmt="o-", capsize=3, label=arm)
            axes.set_xticks(range(len(stages)), stages, rotation=20)
            axes.set(title=FIGURES[name])
        panels[0].legend(frameon=False)

    return svg((11, 4), draw)
