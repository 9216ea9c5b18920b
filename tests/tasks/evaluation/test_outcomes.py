"""Figures computed by hand for tiny tables, which pass through the store as they do in the flow."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest
from layouts import arena, mtbench, wildbench

from evals.problem import Problem
from evals.wildbench import model_is_a
from infra.store.schemas import GRADES, RESPONSES, STYLES, VERDICTS
from infra.store.tables import read_table
from tasks.evaluation.outcomes import (
    Outcome,
    outcome_of_grades,
    outcome_of_verdicts,
    paired_differences,
    style_controlled_rows,
)
from tasks.evaluation.problems import READ


@pytest.fixture
def frame(world):
    made = 0

    def table(schema: Any, rows: list[dict[str, Any]]) -> pd.DataFrame:
        nonlocal made
        made += 1
        return read_table(world.store, world.table(schema, rows, key=f"k{made}")).to_pandas()

    return table


def grade(problem_id: str, sample: int, correct: bool, **changes: Any) -> dict[str, Any]:
    row = {"problem_id": problem_id, "sample": sample, "prediction": "x", "correct": correct}
    row |= {"parts": None, "correct_parts": None, "thought_tokens": 10, "solution_tokens": 2}
    return {**row, "truncated": False, "malformed": False, **changes}


def verdict(query_id: str, part: str, value: str | float | None, **changes: Any) -> dict[str, Any]:
    found = {"label": value if isinstance(value, str) else None, "score": None if isinstance(value, str) else value}
    row = {"query_id": query_id, "sample": 0, "part": part, "answer": "text", **found}
    return {**row, "asks": 1, "prompt_tokens": 5, "completion_tokens": 2, **changes}


def problems_of(benchmark: Any, *records: dict[str, Any]) -> dict[str, Problem]:
    read = (READ[benchmark](record, 0) for record in records)
    return {problem.problem_id: problem for problem in read}


def is_plain_json(outcome: Outcome) -> bool:
    return bool(json.dumps([outcome.row, outcome.figures], allow_nan=False))


# ---- graded


def test_pass_at_1_is_the_mean_over_problems_of_the_correct_share(frame):
    rights = {"a": (True, True, True, True), "b": (True, False, False, False), "c": (False,) * 4}
    rows = [grade(name, n, right) for name, all_of in rights.items() for n, right in enumerate(all_of)]
    rows[0] |= {"thought_tokens": 22, "solution_tokens": 14, "truncated": True}
    rows[5] |= {"prediction": None, "malformed": True}
    greedy = [grade("a", 0, True), grade("b", 0, True), grade("c", 0, False)]
    categories = {"a": "Algebra", "b": "Geometry", "c": "Geometry"}
    outcome = outcome_of_grades("math500", "m", frame(GRADES, rows), frame(GRADES, greedy), categories)
    assert outcome.per_problem.to_dict() == {"a": 1.0, "b": 0.25, "c": 0.0}
    row = outcome.row
    assert (row["benchmark"], row["model"], row["metric"]) == ("math500", "m", "pass@1")
    assert row["score"] == pytest.approx(5 / 12)
    assert 0 <= row["low"] < row["score"] < row["high"] <= 1
    assert (row["greedy"], row["problems"], row["samples"]) == (pytest.approx(2 / 3), 3, 12)
    assert (row["thought tokens"], row["solution tokens"]) == (11.0, 3.0)
    assert [row[name] for name in ("no answer", "truncated", "malformed")] == [pytest.approx(1 / 12)] * 3
    assert row["unread"] is None
    assert outcome.figures == {"pass@1 Algebra": 1.0, "pass@1 Geometry": 0.125}
    assert is_plain_json(outcome)


def test_problems_without_a_category_have_no_figures(frame):
    grades = frame(GRADES, [grade("a", 0, True), grade("b", 0, False)])
    outcome = outcome_of_grades("short-answer", "m", grades, grades, {"a": None, "b": None})
    assert (outcome.row["score"], outcome.figures) == (0.5, {})


def test_zebralogic_has_its_authors_figures(frame):
    rows = [
        grade("z1", 0, True, parts=4, correct_parts=4),
        grade("z2", 0, False, parts=12, correct_parts=6),
        grade("z3", 0, False, parts=4, correct_parts=0, prediction=None),
    ]
    grades = frame(GRADES, rows)
    outcome = outcome_of_grades("zebralogic", "m", grades, grades, {"z1": "2*2", "z2": "4*3", "z3": "2*2"})
    assert outcome.row["score"] == pytest.approx(1 / 3)
    expected = {"puzzles": 3, "puzzle accuracy": 100 / 3, "cell accuracy": 50.0, "no answer": 100 / 3}
    groups = {"easy": 50.0, "hard": 0.0, "small": 50.0, "medium": 0.0, "2*2": 50.0, "4*3": 0.0}
    expected |= {f"puzzle accuracy by {name}": share for name, share in groups.items()}
    assert outcome.figures == pytest.approx(expected)


# ---- paired differences


def outcome_of(name: str, **scores: float) -> Outcome:
    return Outcome({"benchmark": "math500", "model": name}, {}, pd.Series(scores, dtype=float))


def test_differences_are_of_the_same_problems(frame):
    first, last = outcome_of("one", a=0.5, b=0.25, c=1.0), outcome_of("two", c=0.5, a=1.0, d=0.0)
    (row,) = paired_differences([first, last])
    assert (row["benchmark"], row["from"], row["to"], row["problems"]) == ("math500", "one", "two", 2)
    assert row["gain"] == 0.0  # a: + 0.5, c: - 0.5
    assert row["low"] == -0.5
    assert row["high"] == 0.5


def test_differences_are_between_neighbours_and_between_first_and_last():
    outcomes = [outcome_of(name, a=share, b=share) for name, share in (("x", 0.0), ("y", 0.5), ("z", 0.25))]
    assert [(d["from"], d["to"], d["gain"]) for d in paired_differences(outcomes)] == [
        ("x", "y", 0.5),
        ("y", "z", -0.25),
        ("x", "z", 0.25),
    ]
    assert paired_differences(outcomes[:1]) == []
    assert paired_differences([outcomes[0], outcome_of("none in common", c=1.0)]) == []


# ---- judged


@pytest.fixture
def judged(frame, response):
    def outcome(
        benchmark: Any,
        verdicts: list[dict[str, Any]],
        problems: dict[str, Problem],
        responses: list[dict[str, Any]] | None = None,
        **more: Any,
    ) -> Outcome:
        given = responses or [response(name) for name in problems]
        arguments = {"styles": None, "baselines": {}, "margin": None, **more}
        model = arguments.pop("model", "m")
        tables = frame(VERDICTS, verdicts), frame(RESPONSES, given)
        return outcome_of_verdicts(benchmark, model, *tables, problems, **arguments)

    return outcome


def test_mtbench_is_the_mean_of_all_readable_ratings(judged, response):
    problems = problems_of("mt-bench", mtbench(1), mtbench(2), mtbench(3, "stem"))
    ratings = {"1": (8.0, 4.0), "2": (6.0, None), "3": (None, None)}
    verdicts = [verdict(name, f"turn-{n}", value) for name, two in ratings.items() for n, value in enumerate(two, 1)]
    cut = response("3", solution=None, violations=["no_solution"], finish_reason="length", solution_tokens=0)
    responses = [response(name) for name in ("1", "2", "1", "2", "3")] + [cut]
    outcome = judged("mt-bench", verdicts, problems, responses)
    assert {n: v for n, v in outcome.per_problem.items() if not math.isnan(v)} == {"1": 6.0, "2": 6.0}
    row = outcome.row
    assert (row["metric"], row["score"], row["unread"], row["samples"]) == ("rating", 6.0, 0.5, 6)
    assert [row[name] for name in ("no answer", "truncated", "malformed")] == [pytest.approx(1 / 6)] * 3
    assert row["greedy"] is None
    assert outcome.figures == {
        "turn 1": 7.0,
        "turn 2": 4.0,
        "overall": 6.0,
        "by category stem": None,
        "by category writing": 6.0,
        "rated": 3,
        "unread": 3,
    }
    assert is_plain_json(outcome)


STYLE = {"tokens": 10, "headers": 1, "lists": 0, "bold": 2}


def styles_of(*names: str, **changes: int) -> list[dict[str, Any]]:
    theirs = {f"baseline_{name}": count for name, count in STYLE.items()}
    return [{"query_id": name, **STYLE, **changes, **theirs} for name in names]


def games(name: str, first: str | None, second: str | None) -> list[dict[str, Any]]:
    return [verdict(name, "game-1", first), verdict(name, "game-2", second)]


@pytest.mark.parametrize(
    ("version", "category", "score", "per_problem"),
    [
        ("v0.1", "arena-hard-v0.1", 90.0, {"u1": 100.0, "u2": 50.0}),  # (4 won + 1 tied / 2) of 5 battles
        ("v2.0", "hard_prompt", 100.0, {"u1": 100.0}),  # neither of two games counts if one verdict is unreadable
    ],
)
def test_arenahards_win_rate_is_of_battles(judged, frame, version, category, score, per_problem):
    problems = problems_of(f"arena-hard-{version}", *(arena(n, category) for n in (1, 2)))
    # In game 1 the baseline is A, in game 2 the model is: it wins by much, then wins.
    verdicts = [*games("u1", "B>>A", "A>B"), *games("u2", "A=B", None)]
    outcome = judged(f"arena-hard-{version}", verdicts, problems, styles=frame(STYLES, styles_of("u1", "u2")))
    assert outcome.per_problem.to_dict() == per_problem
    row = outcome.row
    assert (row["metric"], row["score"], row["unread"]) == ("win rate, %", pytest.approx(score), 0.25)
    assert 0 <= row["low"] <= score <= row["high"] <= 100
    assert outcome.figures == {f"win rate {category}": pytest.approx(score)}
    assert is_plain_json(outcome)


def test_arenahards_differences_are_of_the_win_rates(judged, frame):
    """A question's weight is its number of battles, three for `>>`: here this reverses the sign of the difference."""
    problems = problems_of("arena-hard-v0.1", *(arena(n, "arena-hard-v0.1") for n in range(1, 6)))
    styles = frame(STYLES, styles_of(*(f"u{n}" for n in range(1, 6))))
    labels = {"much": ("B>>A", "A>>B"), "won": ("B>A", "A>B"), "lost": ("A>B", "B>A"), "badly": ("A>>B", "B>>A")}
    played = {"x": ["much", "much", "lost", "lost", "lost"], "y": ["won", "won", "won", "badly", "lost"]}
    x, y = (
        judged(
            "arena-hard-v0.1",
            [row for n, how in enumerate(hows, 1) for row in games(f"u{n}", *labels[how])],
            problems,
            styles=styles,
            model=model,
        )
        for model, hows in played.items()
    )
    (row,) = paired_differences([x, y])
    assert x.row["score"] == pytest.approx(100 * 12 / 18)
    assert y.row["score"] == pytest.approx(100 * 6 / 14)
    assert row["gain"] == pytest.approx(y.row["score"] - x.row["score"])
    assert row["low"] <= row["gain"] <= row["high"]


def test_arenahard_has_a_figure_for_each_category(judged, frame):
    problems = problems_of("arena-hard-v2.0", arena(1), arena(2, "creative_writing"), arena(3, "creative_writing"))
    verdicts = [*games("u1", "B>A", "A>B"), *games("u2", "A>B", "B>A"), *games("u3", None, None)]
    outcome = judged("arena-hard-v2.0", verdicts, problems, styles=frame(STYLES, styles_of("u1", "u2", "u3")))
    assert outcome.figures == {"win rate creative_writing": 0.0, "win rate hard_prompt": 100.0}
    assert outcome.row["score"] == 50.0


def test_style_rows_are_the_win_rates_if_all_styles_are_equal(judged, frame):
    problems = problems_of("arena-hard-v2.0", arena(1), arena(2), arena(3, "creative_writing"))
    style = frame(STYLES, styles_of("u1", "u2", "u3"))
    last = games("u3", "A=B", "A=B")
    won = {"good": [*games("u1", "B>A", "A>B"), *games("u2", "A>B", "A>B")]}
    won["fair"] = [*games("u1", "A>B", "A>B"), *games("u2", "B>A", "B>A")]
    outcomes = [
        judged("arena-hard-v2.0", [*verdicts, *last], problems, styles=style, model=model)
        for model, verdicts in won.items()
    ]
    rows = style_controlled_rows(outcomes)
    found = {(row["category"], row["model"]): row["style-controlled"] for row in rows}
    expected = {("hard_prompt", "good"): 75.0, ("hard_prompt", "fair"): 50.0}
    expected |= {("creative_writing", "good"): 50.0, ("creative_writing", "fair"): 50.0}
    assert found == pytest.approx(expected, abs=0.1)
    assert {row["benchmark"] for row in rows} == {"arena-hard-v2.0"}
    assert all(0 <= row["low"] <= row["high"] <= 100 for row in rows)
    assert json.dumps(rows, allow_nan=False)


def test_other_benchmarks_have_no_style_rows():
    assert style_controlled_rows([outcome_of("one", a=1.0)]) == []
    assert style_controlled_rows([]) == []


def choice(name: str, model: str) -> str:
    """The judge's choice if the model wins (+, ++), ties (=) or loses (-, --), given the side that it is shown on."""
    sign = model.replace("-", "+")
    return "A=B" if model == "=" else ("A" if model_is_a(name) == model.startswith("+") else "B") + sign


def test_wildbench_has_both_of_its_figures(judged, response):
    problems = problems_of("wildbench", *(wildbench(n) for n in (1, 2, 3, 4)))
    scores: dict[str, float | None] = {"s1": 7.0, "s2": 9.0, "s3": None, "s4": 5.0}
    pairs = {"s1": choice("s1", "++"), "s2": choice("s2", "-"), "s3": None, "s4": choice("s4", "+")}
    verdicts = [verdict(name, "score", value) for name, value in scores.items()]
    verdicts += [verdict(name, "pair", value) for name, value in pairs.items()]
    solutions: dict[str, str | None] = {"s1": "ours", "s2": "short", "s3": "ours", "s4": None}
    responses = [response(name, solution=solution) for name, solution in solutions.items()]
    baselines = {"s1": "theirs", "s2": "x" * 600, "s3": "theirs", "s4": "theirs"}
    outcome = judged("wildbench", verdicts, problems, responses, baselines=baselines, margin=None)
    assert outcome.per_problem.to_dict() == {"s1": 40.0, "s2": 80.0, "s4": 0.0}
    row = outcome.row
    assert (row["metric"], row["score"], row["unread"], row["no answer"]) == ("WB-Score", 40.0, 0.25, 0.25)
    figures = outcome.figures
    assert (figures["WB-Score mean"], figures["WB-Score score"]) == (7.0, 40.0)
    assert figures["WB-Score by task Coding & Debugging"] == figures["WB-Score by task Math & Data Analysis"] == 60.0
    assert figures["WB-Score task macro"] is None  # three of the five task groups have no problems
    assert (figures["WB-Score scored"], figures["WB-Score unread"]) == (3, 1)
    # (1 - 1/2) of three: won by much, lost, and one with an empty answer, which counts as a tie
    assert figures["WB-Reward reward"] == pytest.approx(100 * 0.5 / 3)
    assert (figures["WB-Reward judged"], figures["WB-Reward left out"], figures["WB-Reward unread"]) == (2, 1, 1)
    assert (figures["WB-Reward outcomes win much"], figures["WB-Reward outcomes lose"]) == (1, 1)
    with_margin = judged("wildbench", verdicts, problems, responses, baselines=baselines, margin=500)
    assert with_margin.figures["WB-Reward reward"] == pytest.approx(100 / 3)
    assert with_margin.figures["WB-Reward outcomes tie"] == 1
    assert with_margin.row == row
    assert is_plain_json(outcome)


def test_wildbench_without_baselines_has_no_reward(judged):
    problems = problems_of("wildbench", wildbench(1))
    outcome = judged("wildbench", [verdict("s1", "score", 6.0)], problems)
    row = outcome.row
    assert -80 < row["low"] < row["score"] == 20.0 < row["high"] < 100  # one conversation says little
    assert not [name for name in outcome.figures if name.startswith("WB-Reward")]


# ---- no spread


@pytest.mark.parametrize("benchmark", ["mt-bench", "arena-hard-v0.1", "arena-hard-v2.0", "wildbench", "math500"])
def test_equal_scores_of_all_problems_have_an_interval_and_so_have_their_gains(judged, frame, benchmark):
    """Ten problems, all with the best score: resampling them shows no spread."""
    u = {"arena-hard-v2.0": 0.2129}.get(benchmark, 0.2775)  # Wilson's upper limit for none of ten, 90 % or 95 %
    names = [f"u{n}" for n in range(1, 11)]
    if benchmark == "math500":
        grades = frame(GRADES, [grade(name, 0, True) for name in names])
        outcome, least, best = outcome_of_grades(benchmark, "m", grades, grades, dict.fromkeys(names, "x")), 0.0, 1.0
    elif benchmark.startswith("arena"):
        category = "arena-hard-v0.1" if benchmark.endswith("0.1") else "hard_prompt"
        problems = problems_of(benchmark, *(arena(n, category) for n in range(1, 11)))
        verdicts = [row for name in names for row in games(name, "B>A", "A>B")]
        outcome = judged(benchmark, verdicts, problems, styles=frame(STYLES, styles_of(*names)))
        least, best = 0.0, 100.0
        (row,) = style_controlled_rows([outcome])
        assert row["low"] <= 100 * (1 - u) + 0.1 < row["style-controlled"] <= row["high"]
    else:
        record = mtbench if benchmark == "mt-bench" else wildbench
        problems = problems_of(benchmark, *(record(n) for n in range(1, 11)))
        parts = ("turn-1", "turn-2") if benchmark == "mt-bench" else ("score",)
        outcome = judged(benchmark, [verdict(name, part, 10.0) for name in problems for part in parts], problems)
        least, best = (1.0, 10.0) if benchmark == "mt-bench" else (-80.0, 100.0)
    found = outcome.row
    assert (found["score"], found["high"]) == pytest.approx((best, best))
    assert found["low"] == pytest.approx(best - u * (best - least), abs=0.01)
    (difference,) = paired_differences([outcome, outcome])
    widest = 0.2775 * (best - least)
    assert (difference["gain"], difference["low"], difference["high"]) == pytest.approx((0, -widest, widest), abs=0.01)


# ---- no verdict could be read


@pytest.mark.parametrize("benchmark", ["mt-bench", "arena-hard-v0.1", "arena-hard-v2.0", "wildbench"])
def test_if_no_verdict_can_be_read_there_is_no_score_and_no_error(judged, frame, benchmark):
    records: dict[str, list[dict[str, Any]]] = {
        "mt-bench": [mtbench(1), mtbench(2)],
        "arena-hard-v0.1": [arena(1, "arena-hard-v0.1"), arena(2, "arena-hard-v0.1")],
        "arena-hard-v2.0": [arena(1), arena(2, "creative_writing")],
        "wildbench": [wildbench(1), wildbench(2)],
    }
    parts = {"mt-bench": ("turn-1", "turn-2"), "wildbench": ("score", "pair")}.get(benchmark, ("game-1", "game-2"))
    problems = problems_of(benchmark, *records[benchmark])
    verdicts = [verdict(name, part, None) for name in problems for part in parts]
    more = {"styles": frame(STYLES, styles_of(*problems)), "baselines": dict.fromkeys(problems, "theirs")}
    outcome = judged(benchmark, verdicts, problems, **more)
    row = outcome.row
    assert (row["score"], row["low"], row["high"], row["unread"]) == (None, None, None, 1.0)
    assert style_controlled_rows([outcome, outcome]) == []
    assert paired_differences([outcome, outcome]) == []
    assert is_plain_json(outcome)


def test_rows_of_all_benchmarks_have_the_same_columns(judged, frame):
    grades = frame(GRADES, [grade("a", 0, True)])
    rows = [outcome_of_grades("math500", "m", grades, grades, {"a": "Algebra"}).row]
    rows.append(judged("mt-bench", [verdict("1", "turn-1", 3.0)], problems_of("mt-bench", mtbench(1))).row)
    problems = problems_of("arena-hard-v2.0", arena(1))
    style = frame(STYLES, styles_of("u1"))
    rows.append(judged("arena-hard-v2.0", games("u1", "A=B", "A=B"), problems, styles=style).row)
    assert len({tuple(row) for row in rows}) == 1
