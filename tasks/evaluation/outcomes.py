"""A model's figures on a benchmark, from grades or verdicts: score and interval, lengths, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from evals import arenahard, mtbench, style_control, wildbench, zebralogic
from evals.problem import Problem
from evals.style_control import Battles, Style, Version
from tasks.evaluation.problems import Benchmark, Judged, Verifiable
from tasks.evaluation.summarise import SHARE, Range, interval, interval_without_spread, weighted_gain

Row = dict[str, Any]

RATING: Range = (1.0, 10.0)
PERCENT: Range = (0.0, 100.0)
WB_SCORE: Range = (-80.0, 100.0)
LEVELS: Mapping[Version, float] = {version: high - low for version, (low, high) in style_control.QUANTILES.items()}
"""Of Arena-Hard's intervals."""


@dataclass(frozen=True)
class Outcome:
    """One model on one benchmark."""

    row: Row
    """The row of the results table: score, interval, lengths, shares."""
    figures: Row
    """Further figures by name, as the authors publish them."""
    per_problem: pd.Series
    """The score of each problem that has one, for paired differences."""
    weights: pd.Series | None = None
    """Each problem's weight in the score: Arena-Hard's battles, MT-Bench's ratings. None: all weights are equal."""
    within: Range = SHARE
    """The least and the largest score of a problem."""
    battles: Mapping[str, Sequence[Battles]] = field(default_factory=dict)
    """Arena-Hard only: one `Battles` per question, by category."""


def outcome_of_grades(
    benchmark: Verifiable, model: str, grades: pd.DataFrame, greedy: pd.DataFrame, categories: Mapping[str, str | None]
) -> Outcome:
    """Pass@1: the mean over problems of the share of correct samples. `greedy` has one answer per problem."""
    per_problem = grades.groupby("problem_id")["correct"].mean().astype(float)
    unanswered = grades["prediction"].isna()
    row = {
        **_score_columns(benchmark, model, "pass@1", per_problem, len(grades)),
        "greedy": float(greedy["correct"].mean()),
        "no answer": float(unanswered.mean()),
        **_length_columns(grades),
        "unread": None,
    }
    category = grades["problem_id"].map(categories.get)
    figures: Row = {
        f"pass@1 {name}": float(share) for name, share in grades.groupby(category)["correct"].mean().items()
    }
    if benchmark == "zebralogic":
        graded = (
            (
                str(categories[each.problem_id]),
                zebralogic.Grade(
                    isinstance(each.prediction, str), None, int(each.correct_parts), int(each.parts), bool(each.correct)
                ),
            )
            for each in grades.itertuples()
        )
        figures = _flattened(asdict(zebralogic.figures(graded)))
    return Outcome(row, figures, per_problem)


def outcome_of_verdicts(
    benchmark: Judged,
    model: str,
    verdicts: pd.DataFrame,
    responses: pd.DataFrame,
    problems: Mapping[str, Problem],
    *,
    styles: pd.DataFrame | None,
    baselines: Mapping[str, str],
    margin: int | None,
) -> Outcome:
    """A judged benchmark's score in its authors' unit. Verdicts that could not be read are in no mean.

    Args:
        styles: the table `styles`, for Arena-Hard.
        baselines: the baseline's answers by problem id, for WildBench.
        margin: of WildBench's length rule, in characters (see `evals.wildbench.outcome`); None for no such rule.
    """
    categories = {name: problem.category for name, problem in problems.items()}
    if benchmark == "mt-bench":
        scores = _mtbench(verdicts, categories)
    elif benchmark == "wildbench":
        scores = _wildbench(verdicts, responses, problems, baselines, margin)
    else:
        assert styles is not None
        scores = _arenahard(benchmark, model, verdicts, categories, styles)
    flagged = responses.assign(
        truncated=responses["finish_reason"] != "stop", malformed=responses["violations"].map(len) > 0
    )
    row = {
        **_score_columns(benchmark, model, scores.row["metric"], scores.per_problem, len(responses), scores.within),
        **scores.row,
        "no answer": float(responses["solution"].isna().mean()),
        **_length_columns(flagged),
        "unread": float((verdicts["label"].isna() & verdicts["score"].isna()).mean()),
    }
    return replace(scores, row=row)


# In the outcomes of the next three, `row` has the metric only, and score and interval if the authors do not take them
# from the mean over problems.


def _mtbench(verdicts: pd.DataFrame, categories: Mapping[str, str | None]) -> Outcome:
    ratings = [
        (str(categories[each.query_id]), int(each.part.removeprefix("turn-")), _number_or_none(each.score))
        for each in verdicts.itertuples()
    ]
    of_problem = verdicts.groupby("query_id")["score"]
    found = asdict(mtbench.figures(ratings))
    row = {"metric": "rating", "score": found["overall"]}
    return Outcome(row, _flattened(found), of_problem.mean(), of_problem.count(), RATING)


def _arenahard(
    benchmark: Judged, model: str, verdicts: pd.DataFrame, categories: Mapping[str, str | None], styles: pd.DataFrame
) -> Outcome:
    version: Version = "v0.1" if benchmark == "arena-hard-v0.1" else "v2.0"
    labels = verdicts.pivot(index="query_id", columns="part", values="label")
    style = styles.set_index("query_id")
    battles = {}
    for query_id, games in labels.iterrows():
        given = [label if isinstance(label, str) else None for label in (games["game-1"], games["game-2"])]
        lost, tied, won = arenahard.tally(given, version)
        ours, theirs = (
            Style(*(int(style.loc[query_id, f"{side}{name}"]) for name in ("tokens", "headers", "lists", "bold")))
            for side in ("", "baseline_")
        )
        differ = style_control.differences(ours, theirs, version)
        battles[str(query_id)] = Battles(model, lost, tied, won, differ)
    played = {name: each.lost + each.tied + each.won for name, each in battles.items()}
    share = {name: 100 * (each.won + each.tied / 2) / played[name] for name, each in battles.items() if played[name]}
    rates = style_control.win_rates([*battles.values()], version)
    row: Row = {"metric": "win rate, %"}
    for overall in rates:
        low, high = _unless_all_equal(overall, [*battles.values()], version)
        row |= {"score": 100 * overall.score, "low": 100 * low, "high": 100 * high}
    by_category: defaultdict[str, list[Battles]] = defaultdict(list)
    for name, each in battles.items():
        by_category[str(categories[name])].append(each)
    figures: Row = {}
    for category, found in sorted(by_category.items()):
        rate = style_control.win_rates(found, version)
        figures[f"win rate {category}"] = 100 * rate[0].score if rate else None
    per_problem, weights = pd.Series(share, dtype=float), pd.Series(played, dtype=float)
    return Outcome(row, figures, per_problem, weights, PERCENT, by_category)


def _wildbench(
    verdicts: pd.DataFrame,
    responses: pd.DataFrame,
    problems: Mapping[str, Problem],
    baselines: Mapping[str, str],
    margin: int | None,
) -> Outcome:
    answers = dict(zip(responses["query_id"], responses["solution"].fillna(""), strict=True))
    tasks = {name: wildbench.checklist_and_tasks(problem)[1] for name, problem in problems.items()}
    scores = verdicts[verdicts["part"] == "score"].set_index("query_id")["score"]
    rated = [
        wildbench.Rated(tasks[name], answers.get(name, ""), _number_or_none(score)) for name, score in scores.items()
    ]
    found = wildbench.score_figures(rated)
    figures = {f"WB-Score {name}": value for name, value in _flattened(asdict(found)).items()}
    pairs = [
        wildbench.Compared(
            tasks[each.query_id],
            answers.get(each.query_id, ""),
            baselines[each.query_id],
            wildbench.model_is_a(each.query_id),
            each.label if isinstance(each.label, str) else None,
        )
        for each in verdicts[verdicts["part"] == "pair"].itertuples()
    ]
    if pairs:
        compared = _flattened(asdict(wildbench.reward_figures(pairs, margin)))
        figures |= {f"WB-Reward {name}": value for name, value in compared.items()}
    per_problem = 20 * (scores.dropna().astype(float) - 5)
    return Outcome({"metric": "WB-Score"}, figures, per_problem, within=WB_SCORE)


def style_controlled_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Style-controlled win rates of all models on Arena-Hard, in percent; no rows for any other benchmark.

    Each category has a fit of its own: v2.0's two have different baselines and separate leader boards.
    """
    rows = []
    for category in sorted({name for outcome in outcomes for name in outcome.battles}):
        battles = [each for outcome in outcomes for each in outcome.battles.get(category, ())]
        version = arenahard.version_of(category)
        for each in style_control.style_controlled(battles, version).scores:
            low, high = _unless_all_equal(each, battles, version)
            named = {"benchmark": outcomes[0].row["benchmark"], "category": category, "model": each.model}
            rows.append({**named, "style-controlled": 100 * each.score, "low": 100 * low, "high": 100 * high})
    return rows


def _unless_all_equal(score: style_control.Score, battles: Sequence[Battles], version: Version) -> tuple[float, float]:
    """A score's bootstrap interval, or `interval_without_spread` if all the model's battles have the same outcome."""
    fought = [(each.lost, each.tied, each.won) for each in battles if each.model == score.model]
    met = {tuple(count > 0 for count in each) for each in fought if any(each)}
    if len(met) > 1 or sum(next(iter(met), ())) != 1:
        return score.low, score.high
    return interval_without_spread(score.score, sum(any(each) for each in fought), SHARE, LEVELS[version])


def paired_differences(outcomes: Sequence[Outcome]) -> list[Row]:
    """Paired differences on the same problems between each model and the next, and between the first and the last.

    They are differences of the published scores: a problem has the same weight as in each of the two scores.
    """
    rows = []
    pairs = [*pairwise(outcomes), *([(outcomes[0], outcomes[-1])] if len(outcomes) > 2 else [])]
    for before, after in pairs:
        both = before.per_problem.dropna().index.intersection(after.per_problem.dropna().index)
        if len(both):
            figures = [_scores_and_weights(outcome, both) for outcome in (before, after)]
            gain, low, high = weighted_gain(*figures[0], *figures[1], after.within)
            names = {"benchmark": after.row["benchmark"], "from": before.row["model"], "to": after.row["model"]}
            rows.append({**names, "problems": len(both), "gain": gain, "low": low, "high": high})
    return rows


def _scores_and_weights(outcome: Outcome, problems: pd.Index) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The scores and the weights of these problems."""
    scores = outcome.per_problem[problems].to_numpy(dtype=float)
    weights = np.ones(len(problems)) if outcome.weights is None else outcome.weights[problems].to_numpy(dtype=float)
    return scores, weights


def _score_columns(
    benchmark: Benchmark, model: str, metric: str, per_problem: pd.Series, samples: int, within: Range = SHARE
) -> Row:
    """A row's first columns; there is no score if nothing could be graded."""
    values = per_problem.dropna().to_numpy(dtype=float)
    low, high = interval(values, within) if len(values) else (None, None)
    return {
        "benchmark": benchmark,
        "model": model,
        "metric": metric,
        "score": float(values.mean()) if len(values) else None,
        "low": low,
        "high": high,
        "greedy": None,
        "problems": len(per_problem),
        "samples": samples,
    }


def _length_columns(rows: pd.DataFrame) -> Row:
    """Mean lengths in tokens, and the shares of truncated and of malformed responses."""
    return {
        "thought tokens": float(rows["thought_tokens"].mean()),
        "solution tokens": float(rows["solution_tokens"].mean()),
        "truncated": float(rows["truncated"].mean()),
        "malformed": float(rows["malformed"].mean()),
    }


def _number_or_none(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _flattened(figures: Mapping[str, Any]) -> Row:
    """Nested figures under one name each, such as "by category math"."""
    flat: Row = {}
    for name, value in figures.items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name} {part}".strip().replace("_", " "): found for part, found in inner.items()}
    return flat
