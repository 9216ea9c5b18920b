from __future__ import annotations

import csv
import json
import math
import re
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from evals import style_control
from evals.arenahard import read_answer, tally
from evals.style_control import Battles, Style, differences, interval, style_controlled, style_of, win_rates

BENCH = Path(__file__).parents[2].parent / "shared" / "bench" / "arenahard"
official = pytest.mark.skipif(not BENCH.is_dir(), reason="the official files are missing (../shared/bench/arenahard)")

BASELINE = "claude-3.7-sonnet"
MARKDOWN = """# One
## Two ##
####### seven
 # indented
- a
  * b
+ c
1. d
   23. e
-no
**bold** and __bold too__ and **not
bold**
```python
# comment
- item
**x**
```
"""
markdown = st.lists(
    st.sampled_from(
        [
            "# ",
            "###",
            "\n",
            "\n\n",
            " ",
            "\t",
            "- ",
            "* ",
            "+",
            "1. ",
            "12.",
            "٣. ",
            "**",
            "__",
            "a",
            "```",
            "`",
            "\r",
            "\x0b",
        ]
    )
).map("".join)
counts = st.integers(0, 5)
battle = st.builds(
    Battles,
    st.sampled_from(["one", "two", "base"]),
    counts,
    counts,
    counts,
    st.tuples(st.sampled_from([-1.0, 0.0, 0.25]), st.floats(-1, 1)),
)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(style_control, "RESAMPLES", 5)


def rows(name: str) -> list[dict]:
    with (BENCH / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def published(name: str) -> dict[str, dict[str, str]]:
    with (BENCH / f"ko_leaderboard_20250423_{name}.csv").open(encoding="utf-8") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@cache
def fork_battles() -> list[Battles]:
    """The fork's verdicts, with covariates for the 72 models whose counts are available.

    One question of o4-mini-high has one game, which the fork reads again as game 2 (`game = row["games"][0]`).
    """
    styles = {
        row["model"]: {q: Style(*each) for q, each in row["meta"].items()}
        for row in rows("ko_style_metadata_72models.jsonl")
    }
    found = []
    for row in rows("ko_verdicts_76models.jsonl"):
        model, question, games = row["model"], row["question_id"], row["games"]
        covariates = differences(styles[model][question], styles[BASELINE][question], "v0.1") if model in styles else ()
        found.append(Battles(model, *tally(games * 2 if len(games) == 1 else games, "v0.1"), covariates))
    return found


def by_name(scores):
    return {each.model: each for each in scores}


def test_markdown_is_counted_outside_code():
    assert style_of(MARKDOWN, 50) == Style(tokens=50, headers=2, lists=5, bold=2)
    assert style_of("", 0) == Style(0, 0, 0, 0)


def test_the_text_of_a_code_block_is_deleted_elsewhere_too():
    """As in the authors' program; here the block also deletes the list's only item."""
    assert style_of("- item\n", 1).lists == 1
    assert style_of("- item\n``````\n", 1).lists == 1
    assert style_of("- item\n```- item```\n", 1).lists == 0
    assert style_of("# a\n# b\n```\n```", 1).headers == 1  # a block that is one line feed joins all lines


def published_counts(answer: str) -> tuple[int, int, int]:
    """What the authors' program counts, in their own code."""
    for block in re.findall("```([^`]*)```", answer):
        answer = answer.replace(block, "")
    return (
        sum(len(re.findall(rf"^#{{{level}}}\s", answer, re.MULTILINE)) for level in range(1, 7)),
        len(re.findall(r"^\s*\d+\.\s", answer, re.MULTILINE)) + len(re.findall(r"^\s*[-*+]\s", answer, re.MULTILINE)),
        len(re.findall(r"\*\*[^*\n]+\*\*", answer)) + len(re.findall(r"__[^_\n]+__", answer)),
    )


@settings(max_examples=1000, deadline=None)
@given(st.text() | markdown)
def test_counts_what_the_authors_count(answer):
    found = style_of(answer, 3)
    assert (found.headers, found.lists, found.bold) == published_counts(answer)


@pytest.mark.parametrize(
    "unit", ["\n", " \n", "# ", "1", "1. ", "- ", "**a", "__", "```", "```a", "```a```", "`", "ab```c```"]
)
def test_time_is_linear_in_the_length(unit):
    """Eight times the text takes about eight times as long; quadratic work would take sixty-four times."""

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        found = []
        for _ in range(3):
            began = time.process_time()
            style_of(text, 1)
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(800_000) < 25 * seconds(100_000) + 0.05


def test_many_different_blocks_of_code_are_counted_fast_enough():
    text = "".join(f"```{number * 7919 % 100_003}" for number in range(10_000))
    began = time.process_time()
    style_of(text, 1)
    assert len(text) > 70_000
    assert time.process_time() - began < 5


def test_differences():
    long, short = Style(300, 4, 0, 8), Style(100, 0, 0, 7)
    assert differences(long, short, "v0.1") == pytest.approx((200 / 401, 4 / 5, 0, 1 / 16))
    dense = (4 / 301, 0.0, (8 / 301 - 7 / 101) / (8 / 301 + 7 / 101 + 1))
    assert differences(long, short, "v2.0") == pytest.approx((0.5, dense[0] / (dense[0] + 1), 0, dense[2]))
    for version in ("v0.1", "v2.0"):
        assert differences(Style(0, 0, 0, 0), Style(0, 0, 0, 0), version) == (0, 0, 0, 0)
        assert differences(long, short, version) == pytest.approx([-each for each in differences(short, long, version)])


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_win_rates(version):
    battles = [Battles("one", 1, 2, 1), Battles("two", 0, 0, 6), Battles("one", 0, 0, 4), Battles("gone", 0, 0, 0)]
    found = win_rates(battles, version)
    assert [(each.model, each.score) for each in found] == [("two", 1.0), ("one", 0.75)]
    assert (found[0].low, found[0].high) == (1, 1)
    assert found[1].low < 0.75 < found[1].high
    assert win_rates(battles, version) == found
    assert win_rates([], version) == []


def test_intervals_are_of_95_and_90_percent():
    """The standard error of a share of 0.3 of 2,000 battles is 0.01025."""
    battles = [Battles("one", 1_400, 0, 600)]
    older, newer = win_rates(battles, "v0.1")[0], win_rates(battles, "v2.0")[0]
    assert older.high - older.low == pytest.approx(2 * 1.960 * 0.01025, rel=0.25)
    assert newer.high - newer.low == pytest.approx(2 * 1.645 * 0.01025, rel=0.25)
    assert newer.high - newer.low < older.high - older.low


def simulated(version: str, questions: int = 150) -> list[Battles]:
    """Two models of equal strength, 0.3, one with longer answers, and a judge that prefers length (1.5 per unit)."""
    rng = np.random.default_rng(1)
    found = []
    for model, longer in (("long", 0.6), ("short", -0.6)):
        for _ in range(questions):
            difference = float(np.clip(rng.normal(longer, 0.3), -1, 1))
            won = int(rng.binomial(2, special.expit(0.3 + 1.5 * difference)))
            tied = int(rng.integers(2))
            found.append(Battles(model, 2 - won, tied, won, (difference, float(rng.normal()))))
    return [*found, *(Battles("base", 1, 0, 2, (0.0, 0.1)) for _ in range(20))]


def published_fit(battles, version):
    """The fit of the authors' matrix: one row per battle, +1 for the baseline, -1 for the model; ties are half wins."""
    names = sorted({each.model for each in battles} - {"base"})
    unit = math.log(10) if version == "v0.1" else 1.0
    features, outcomes, styles = [], [], []
    for each in battles:
        row = np.zeros(len(names) + 1)
        row[[*names, "base"].index(each.model)] = -unit
        row[-1] = unit
        if each.model == "base":
            row[-1] = -unit
        for outcome, number in ((0.0, each.won), (0.5, each.tied), (1.0, each.lost)):  # the baseline's side
            features += [row] * number
            styles += [[-value for value in each.differences]] * number
            outcomes += [outcome] * number
    style = np.array(styles)
    style = (style - style.mean(axis=0)) / style.std(axis=0, ddof=0 if version == "v0.1" else 1)
    matrix, target = np.hstack([np.array(features), style]), np.array(outcomes)
    if version == "v0.1":  # every battle twice, of which a tie wins one
        matrix = np.vstack([matrix, matrix])
        target = np.concatenate([np.ceil(target), np.floor(target)])

    def loss(weights):
        odds = matrix @ weights
        value = (np.logaddexp(0, odds) - target * odds).sum()
        slope = matrix.T @ (special.expit(odds) - target)
        if version == "v0.1":
            value, slope = value + weights @ weights / 2, slope + weights
        return value / len(target), slope / len(target)

    tolerances = {"gtol": 1e-4, "ftol": 64 * np.finfo(float).eps, "maxiter": 100, "maxls": 50}
    options = tolerances if version == "v0.1" else {"gtol": 1e-10, "ftol": 0}
    weights = optimize.minimize(loss, np.zeros(matrix.shape[1]), jac=True, method="L-BFGS-B", options=options).x
    strengths = special.expit(unit * (weights[: len(names)] - weights[len(names)]))
    return dict(zip(names, strengths, strict=True)), weights[len(names) + 1 :]


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_the_fit_equals_the_authors(version, few_resamples):
    battles = simulated(version)
    found = style_controlled(battles, version, "base")
    scores, coefficients = published_fit(battles, version)
    assert {each.model: each.score for each in found.scores} == pytest.approx(scores, abs=1e-5)
    assert found.coefficients == pytest.approx(coefficients, abs=1e-4)


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_style_control_removes_the_preference_for_length(version, monkeypatch):
    monkeypatch.setattr(style_control, "RESAMPLES", 20)
    battles = simulated(version)
    plain = by_name(win_rates(battles, version))
    found = style_controlled(battles, version, "base")
    controlled = by_name(found.scores)
    assert set(controlled) == {"long", "short"}
    assert plain["long"].score - plain["short"].score > 0.25
    assert abs(controlled["long"].score - controlled["short"].score) < 0.1
    assert found.coefficients[0] > 0.3 > abs(found.coefficients[1])
    for each in found.scores:
        assert each.low < each.score < each.high
    assert style_controlled(battles, version, "base") == found


def test_with_one_model_nothing_is_controlled_for(few_resamples):
    """The score is at the model's own mean style; the rest is due to the curvature of the logistic function."""
    battles = [each for each in simulated("v0.1") if each.model == "long"]
    plain, controlled = win_rates(battles, "v0.1")[0], style_controlled(battles, "v0.1", "base").scores[0]
    assert controlled.score == pytest.approx(plain.score, abs=0.02)


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_a_covariate_that_never_varies_has_no_effect(version, few_resamples):
    battles = simulated(version)
    constant = [Battles(each.model, each.lost, each.tied, each.won, (*each.differences, 0.4)) for each in battles]
    found, without = style_controlled(constant, version, "base"), style_controlled(battles, version, "base")
    assert found.coefficients[2] == 0
    assert by_name(found.scores)["long"].score == pytest.approx(by_name(without.scores)["long"].score, abs=1e-5)


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_a_model_that_wins_all_or_nothing_is_scored(version, few_resamples):
    rng = np.random.default_rng(0)
    battles = [Battles("all", 0, 0, 6, (float(rng.normal()),)) for _ in range(50)]
    battles += [Battles("nothing", 6, 0, 0, (float(rng.normal()),)) for _ in range(50)]
    found = by_name(style_controlled(battles, version, "base").scores)
    assert found["all"].score > 0.97
    assert found["nothing"].score < 0.03


def test_style_control_without_battles_or_with_uneven_covariates():
    assert style_controlled([], "v0.1", "base").scores == []
    assert style_controlled([Battles("one", 0, 0, 0)], "v2.0", "base").scores == []
    assert style_controlled([Battles("base", 1, 0, 1, (0.5,))], "v2.0", "base").scores == []
    for wrong in ([Battles("one", 1, 0, 0)], [Battles("one", 1, 0, 0, (0.1,)), Battles("two", 1, 0, 0, (0.1, 0.2))]):
        with pytest.raises(ValueError, match=r"expected the same number .* of differences in style"):
            style_controlled(wrong, "v0.1", "base")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(battles=st.lists(battle, max_size=12), version=st.sampled_from(["v0.1", "v2.0"]))
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_any_battles_can_be_scored(battles, version, monkeypatch):
    monkeypatch.setattr(style_control, "RESAMPLES", 2)
    plain = by_name(win_rates(battles, version))
    controlled = by_name(style_controlled(battles, version, "base").scores)
    fought = {each.model for each in battles if each.lost + each.tied + each.won}
    assert set(plain) == fought
    assert set(controlled) == fought - {"base"}
    for each in [*plain.values(), *controlled.values()]:
        assert 0 <= each.score <= 1
        assert math.isnan(each.low) or 0 <= each.low <= each.high <= 1


@official
def test_official_counts_of_headers_lists_and_bold():
    for number, row in enumerate(rows("answers_v2.0_o3-mini-2025-01-31.jsonl")):
        answer = read_answer(row, number)
        assert answer.style is not None
        assert style_of(answer.text, answer.style.tokens) == answer.style, answer.problem_id


@official
def test_published_win_rates_to_two_decimals():
    """75 of 76; the 76th is the baseline, which the fork sets to 50.0, while its battles against itself give 50.65."""
    found, leader_board = by_name(win_rates(fork_battles(), "v0.1")), published("no_control")
    assert set(found) == set(leader_board)
    differing = {
        model for model, row in leader_board.items() if round(100 * found[model].score, 2) != float(row["score"])
    }
    assert differing == {BASELINE}
    assert round(100 * found[BASELINE].score, 2) == 50.65
    assert float(leader_board[BASELINE]["score"]) == 50.0


@official
def test_published_intervals_of_published_resamples():
    stats = rows("bootstrap_stats_arena_hard_20240413.jsonl")
    assert len(stats) == 28
    for row in stats:
        low, high = interval(np.array(row["results"], dtype=float)[:, None], "v0.1")
        assert (low[0], high[0]) == pytest.approx((row["lower"], row["upper"]), abs=1e-9)


@official
@pytest.mark.parametrize(
    ("name", "columns", "within"),
    [
        ("style_control", slice(0, 4), 2.1),
        ("length_control", slice(0, 1), 1.9),
        ("markdown_control", slice(1, 4), 0.6),
    ],
)
def test_published_style_control(name, columns, within, few_resamples):
    """In points, for the 71 models whose counts are available; the published fit also included the four others."""
    battles = [
        Battles(each.model, each.lost, each.tied, each.won, each.differences[columns])
        for each in fork_battles()
        if each.differences
    ]
    leader_board = published(name)
    found = style_controlled(battles, "v0.1", BASELINE).scores
    assert len(found) == 71
    assert max(abs(100 * each.score - float(leader_board[each.model]["score"])) for each in found) < within
    order = sorted(found, key=lambda each: -float(leader_board[each.model]["score"]))
    assert [each.model for each in found[:3]] == [each.model for each in order[:3]]
