"""What a benchmark's grades or verdicts tell of a model: score and interval, lengths, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from evals import arenahard, mtbench, style_control, wildbench, zebralogic
from evals.problem import Problem
from evals.style_control import Battles, Style, Version
from tasks.evaluation.problems import Benchmark, Judged, Verifiable
from tasks.evaluation.summarise import interval, weighted_gain

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One model on one benchmark."""

    row: Row
    """What tables show: score, interval, lengths, shares."""
    figures: Row
    """Further figures, as the authors publish them, by name."""
    per_problem: pd.Series
    """The score of each problem that has one. For paired differences."""
    weights: pd.Series | None = None
    """How much each problem counts in the score: Arena-Hard's battles, MT-Bench's ratings. None: as all others."""
    battles: Mapping[str, Sequence[Battles]] = field(default_factory=dict)
    """Arena-Hard: one a question, by category."""


def of_grades(
    benchmark: Verifiable, model: str, grades: pd.DataFrame, greedy: pd.DataFrame, categories: Mapping[str, str | None]
) -> Outcome:
    """Pass@1: the mean over problems of the share of right samples; `greedy` is of one answer a problem."""
    per_problem = grades.groupby("problem_id")["correct"].mean().astype(float)
    unanswered = grades["prediction"].isna()
    row = {
        **_scored(benchmark, model, "pass@1", per_problem, len(grades)),
        "greedy": float(greedy["correct"].mean()),
        "no answer": float(unanswered.mean()),
        **_lengths(grades),
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
        figures = _flat(asdict(zebralogic.figures(graded)))
    return Outcome(row, figures, per_problem)


def of_verdicts(
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
    """A judged benchmark's score in its authors' unit; verdicts that could not be read are in no mean.

    `styles`: Arena-Hard's; `baselines` and `margin`: WildBench's answers to compare with, and its length rule.
    """
    categories = {name: problem.category for name, problem in problems.items()}
    if benchmark == "mt-bench":
        told = _mtbench(verdicts, categories)
    elif benchmark == "wildbench":
        told = _wildbench(verdicts, responses, problems, baselines, margin)
    else:
        assert styles is not None
        told = _arenahard(benchmark, model, verdicts, categories, styles)
    shown = responses.assign(
        truncated=responses["finish_reason"] != "stop", malformed=responses["violations"].map(len) > 0
    )
    row = {
        **_scored(benchmark, model, told.metric, told.per_problem, len(responses)),
        **told.published,
        "no answer": float(responses["solution"].isna().mean()),
        **_lengths(shown),
        "unread": float((verdicts["label"].isna() & verdicts["score"].isna()).mean()),
    }
    return Outcome(row, told.figures, told.per_problem, told.weights, told.battles)


@dataclass(frozen=True)
class _Told:
    metric: str
    per_problem: pd.Series
    figures: Row
    published: Row = field(default_factory=dict)
    """Score and interval, where the authors do not take them from the problems' mean."""
    weights: pd.Series | None = None
    battles: Mapping[str, Sequence[Battles]] = field(default_factory=dict)


def _mtbench(verdicts: pd.DataFrame, categories: Mapping[str, str | None]) -> _Told:
    ratings = [
        (str(categories[each.query_id]), int(each.part.removeprefix("turn-")), _number(each.score))
        for each in verdicts.itertuples()
    ]
    of_problem = verdicts.groupby("query_id")["score"]
    found = asdict(mtbench.figures(ratings))
    return _Told("rating", of_problem.mean(), _flat(found), {"score": found["overall"]}, of_problem.count())


def _arenahard(
    benchmark: Judged, model: str, verdicts: pd.DataFrame, categories: Mapping[str, str | None], styles: pd.DataFrame
) -> _Told:
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
    fought = {name: each.lost + each.tied + each.won for name, each in battles.items()}
    share = {name: 100 * (each.won + each.tied / 2) / fought[name] for name, each in battles.items() if fought[name]}
    rates = style_control.win_rates([*battles.values()], version)
    published = {name: 100 * getattr(rate, name) for rate in rates for name in ("score", "low", "high")}
    by_category: defaultdict[str, list[Battles]] = defaultdict(list)
    for name, each in battles.items():
        by_category[str(categories[name])].append(each)
    figures: Row = {}
    for category, found in sorted(by_category.items()):
        of = style_control.win_rates(found, version)
        figures[f"win rate {category}"] = 100 * of[0].score if of else None
    per_problem, weights = pd.Series(share, dtype=float), pd.Series(fought, dtype=float)
    return _Told("win rate, %", per_problem, figures, published, weights, by_category)


def _wildbench(
    verdicts: pd.DataFrame,
    responses: pd.DataFrame,
    problems: Mapping[str, Problem],
    baselines: Mapping[str, str],
    margin: int | None,
) -> _Told:
    answers = dict(zip(responses["query_id"], responses["solution"].fillna(""), strict=True))
    tasks = {name: wildbench.checklist_and_tasks(problem)[1] for name, problem in problems.items()}
    scores = verdicts[verdicts["part"] == "score"].set_index("query_id")["score"]
    rated = [wildbench.Rated(tasks[name], answers.get(name, ""), _number(score)) for name, score in scores.items()]
    found = wildbench.score_figures(rated)
    figures = {f"WB-Score {name}": value for name, value in _flat(asdict(found)).items()}
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
        compared = _flat(asdict(wildbench.reward_figures(pairs, margin)))
        figures |= {f"WB-Reward {name}": value for name, value in compared.items()}
    return _Told("WB-Score", 20 * (scores.dropna().astype(float) - 5), figures)


def style_figures(outcomes: Sequence[Outcome]) -> list[Row]:
    """Arena-Hard's win rates of all models of a benchmark with their style controlled, in percent; [] of any other.

    A fit a category: v2.0's two have different baselines, and boards of their own.
    """
    rows = []
    for category in sorted({name for outcome in outcomes for name in outcome.battles}):
        battles = [each for outcome in outcomes for each in outcome.battles.get(category, ())]
        version = arenahard.version_of(category)
        rows += [
            {
                "benchmark": outcomes[0].row["benchmark"],
                "category": category,
                "model": each.model,
                "style-controlled": 100 * each.score,
                "low": 100 * each.low,
                "high": 100 * each.high,
            }
            for each in style_control.style_controlled(battles, version).scores
        ]
    return rows


def differences(outcomes: Sequence[Outcome]) -> list[Row]:
    """Paired differences on the same problems between each model and the next, and of the last from the first.

    Of the scores as they are published: a problem counts as much as it does in each of the two.
    """
    rows = []
    pairs = [*pairwise(outcomes), *([(outcomes[0], outcomes[-1])] if len(outcomes) > 2 else [])]
    for before, after in pairs:
        both = before.per_problem.dropna().index.intersection(after.per_problem.dropna().index)
        if len(both):
            figures = [_shares(outcome, both) for outcome in (before, after)]
            gain, low, high = weighted_gain(*figures[0], *figures[1])
            names = {"benchmark": after.row["benchmark"], "from": before.row["model"], "to": after.row["model"]}
            rows.append({**names, "problems": len(both), "gain": gain, "low": low, "high": high})
    return rows


def _shares(outcome: Outcome, problems: pd.Index) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores and weights of these problems."""
    scores = outcome.per_problem[problems].to_numpy(dtype=float)
    weights = np.ones(len(problems)) if outcome.weights is None else outcome.weights[problems].to_numpy(dtype=float)
    return scores, weights


def _scored(benchmark: Benchmark, model: str, metric: str, per_problem: pd.Series, samples: int) -> Row:
    """A row's first columns; a benchmark of which nothing could be graded has no score."""
    values = per_problem.dropna().to_numpy(dtype=float)
    low, high = interval(values) if len(values) else (None, None)
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


def _lengths(rows: pd.DataFrame) -> Row:
    """Mean tokens, and the shares that were cut and that left their format."""
    return {
        "thought tokens": float(rows["thought_tokens"].mean()),
        "solution tokens": float(rows["solution_tokens"].mean()),
        "truncated": float(rows["truncated"].mean()),
        "malformed": float(rows["malformed"].mean()),
    }


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _flat(figures: Mapping[str, Any]) -> Row:
    """Figures of figures under one name each."""
    flat: Row = {}
    for name, value in figures.items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name} {part}".strip().replace("_", " "): found for part, found in inner.items()}
    return flat
