from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.wildbench import (
    PAIR_WORDS,
    TASKS,
    WEIGHTS,
    Compared,
    Rated,
    RewardFigures,
    ScoreFigures,
    outcome,
    read_score,
    reward,
    reward_figures,
    score_figures,
    task_macro,
)

BENCH = Path(__file__).parents[2].parent / "shared" / "bench" / "wildbench"
official = pytest.mark.skipif(not BENCH.is_dir(), reason="the official files are missing (../shared/bench/wildbench)")
CHOICES = ["A++", "A+", "A=B", "B+", "B++"]


def rows(name: str) -> list[dict]:
    with (BENCH / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def published(name: str) -> dict[str, dict]:
    return json.loads((BENCH / f"published_{name}.json").read_text(encoding="utf-8"))


def pair(choice, *, is_a=True, answer="answer", reference="answer", tasks=("Creative Tasks",)) -> Compared:
    return Compared(tasks, answer, reference, is_a, choice)


@pytest.mark.parametrize(
    ("choice", "for_a", "for_b"),
    [
        ("A++", "win_much", "lose_much"),
        ("A+", "win", "lose"),
        ("A=B", "tie", "tie"),
        ("B+", "lose", "win"),
        ("B++", "lose_much", "win_much"),
        (None, None, None),
    ],
)
def test_outcome(choice, for_a, for_b):
    assert outcome(pair(choice, is_a=True), None) == for_a
    assert outcome(pair(choice, is_a=False), None) == for_b


@pytest.mark.parametrize(
    ("choice", "length", "reference", "ended"),
    [
        ("A+", 600, 99, "tie"),  # 501 longer
        ("A+", 600, 100, "win"),  # 500 longer: not more than the margin
        ("A+", 100, 900, "win"),
        ("B+", 99, 600, "tie"),
        ("B+", 100, 600, "lose"),
        ("B+", 900, 100, "lose"),
        ("A++", 900, 100, "win_much"),
        ("B++", 100, 900, "lose_much"),
        ("A=B", 900, 100, "tie"),
    ],
)
def test_a_slight_win_of_a_far_longer_answer_is_a_tie(choice, length, reference, ended):
    compared = pair(choice, answer="x" * length, reference="y" * reference)
    assert outcome(compared, 500) == ended
    swapped = {"A++": "B++", "A+": "B+", "A=B": "A=B", "B+": "A+", "B++": "A++"}[choice]
    assert outcome(pair(swapped, is_a=False, answer="x" * length, reference="y" * reference), 500) == ended
    assert outcome(compared, None) == outcome(pair(choice), 0)


def test_score_figures():
    tasks = sorted(WEIGHTS)
    verdicts = [
        Rated(tasks, "four", 8.0),
        Rated([tasks[0]], "sixsix", 6.0),
        Rated(tasks, "", 1.0),
        Rated(tasks, "x", None),
    ]
    found = score_figures(verdicts)
    assert found.mean == 5
    assert found.score == 0
    assert found.by_task == {task: 60 if number else 40 for number, task in enumerate(tasks)}
    assert found.task_macro == pytest.approx((1.25 * 40 + 3.5 * 60) / 4.75)  # Coding & Debugging is the first
    assert (found.mean_length, found.scored, found.unread) == (5, 3, 1)
    assert score_figures([]) == ScoreFigures(None, None, None, {}, None, 0, 0)
    assert score_figures(verdicts[1:2]).task_macro is None


def test_reward_figures():
    tasks = ["Creative Tasks", "Coding & Debugging"]
    verdicts = [
        pair("A++", tasks=tasks, answer="four"),
        pair("B+", is_a=False, tasks=tasks[:1]),
        pair("B++", tasks=tasks[1:]),
        pair("A=B", tasks=tasks),
        pair("A++", answer=""),
        pair("B++", answer="b" * 9, reference=" "),
        pair("A++", reference="word " * PAIR_WORDS),
        pair(None),
    ]
    found = reward_figures(verdicts, None)
    assert found.outcomes == {"win_much": 1, "win": 1, "tie": 1, "lose": 0, "lose_much": 1}
    assert (found.judged, found.left_out, found.unread) == (4, 3, 1)
    assert found.reward == pytest.approx(100 * 0.5 / 7)
    assert found.by_task == {"Creative Tasks": 50, "Coding & Debugging": 0}
    assert found.task_macro is None
    assert found.mean_length == pytest.approx((4 + 3 * 6) / 4)
    nothing = dict.fromkeys(found.outcomes, 0)
    assert reward_figures([], 500) == RewardFigures(None, None, {}, nothing, None, 0, 0, 0)
    assert reward_figures([pair("A++", answer="")], None).reward == 0


@given(
    st.lists(
        st.builds(pair, st.none() | st.sampled_from(CHOICES), is_a=st.booleans(), answer=st.text(), reference=st.text())
    )
)
def test_any_pairs_can_be_counted(verdicts):
    found = reward_figures(verdicts, 3)
    assert found.judged + found.left_out + found.unread == len(verdicts)
    assert found.reward is None or -100 <= found.reward <= 100
    mirrored = [
        pair(each.choice, is_a=not each.model_is_a, answer=each.reference_answer, reference=each.answer)
        for each in verdicts
    ]
    opposite = reward_figures(mirrored, 3).reward
    assert (opposite is None) == (found.reward is None)
    assert found.reward is None or opposite == pytest.approx(-found.reward)


def test_tasks_and_weights_have_the_same_groups():
    assert set(TASKS.values()) == set(WEIGHTS)


@official
@pytest.mark.parametrize(("model", "number"), [("gpt-3.5-turbo-0125", 1023), ("gemma-2b-it", 1021)])
def test_published_scores_of_the_available_models(model, number):
    """Read from the judge's answers as JSON text; the files have them in parsed form."""
    verdicts = rows(f"score_gpt-4o_{model}.jsonl")
    assert len(verdicts) == number
    read_again = [read_score(json.dumps(row["parsed_result"])) for row in verdicts]
    assert read_again == [float(row["score"]) for row in verdicts]
    found = score_figures(
        Rated((), row["model_output"], score) for row, score in zip(verdicts, read_again, strict=True)
    )
    expected = published("score")[model]
    assert (found.scored, found.unread) == (expected["total"], 0)
    assert found.mean == pytest.approx(expected["score"], abs=1e-12)
    assert found.score == pytest.approx(10 * expected["adjusted_score"], abs=1e-12)
    assert found.mean_length == pytest.approx(expected["avg_len"], abs=1e-9)


@official
def test_published_scores_as_the_leader_board_shows_them():
    scores, shown = published("score"), published("all_stat_K500")
    assert len(scores) == 61
    for model, row in scores.items():
        assert task_macro(row["task_categorized_scores"]) == pytest.approx(row["task_macro_score"], abs=1e-12)
        assert 20 * (row["score"] - 5) == pytest.approx(10 * row["adjusted_score"], abs=1e-9)
        if model in shown:
            assert shown[model]["WB_score"] == pytest.approx(20 * (row["score"] - 5), abs=1e-9)
    assert len(scores.keys() & shown.keys()) == 61


@official
@pytest.mark.parametrize(
    ("name", "models", "margin"), [("pairwise_gpt4t_K-1", 51, None), ("pairwise_haiku_K500", 53, 500)]
)
def test_published_rewards(name, models, margin):
    shown = published("all_stat_K500")
    leader_board = published(name)
    assert len(leader_board) == models
    for model, row in leader_board.items():
        assert row["K"] == (-1 if margin is None else margin)
        counts = {ended: row[ended] for ended in ("win_much", "win", "tie", "lose", "lose_much")}
        assert reward(counts, row["total"]) == pytest.approx(100 * row["reward"], abs=1e-9)
        by_task = {task: reward(each, sum(each.values())) for task, each in row["task_categorized_results"].items()}
        assert by_task == pytest.approx({task: 100 * each for task, each in row["task_categorized_rewards"].items()})
        assert task_macro(by_task) == pytest.approx(100 * row["task_macro_reward"], abs=1e-9)
        if margin and model in shown:
            assert shown[model]["haiku_reward.K=500"] == pytest.approx(reward(counts, row["total"]), abs=1e-9)
        # the same counts as pairs; those that are left out become pairs with an empty answer
        choices = {"win_much": "A++", "win": "A+", "tie": "A=B", "lose": "B+", "lose_much": "B++"}
        pairs = [pair(choices[ended]) for ended in Counter(counts).elements()]
        pairs += [pair("A++", answer="")] * (row["total"] - len(pairs))
        assert reward_figures(pairs, margin).reward == pytest.approx(100 * row["reward"], abs=1e-9)
