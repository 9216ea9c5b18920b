"""What is learned from trees: the best path, and the branches that part latest."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import TinyServers

from infra.store.schemas import QUERIES, SCORES, SEARCHED
from tasks.mutual.adapt import StepFormat
from tasks.mutual.pair import OutcomePairConfig
from tasks.search.training_data import best_paths, pair_siblings, searched_solutions, siblings

NANO = StepFormat(delimiter=" .", answer="answer :")


def node(query_id: str, number: int, parent: int | None, text: str, **given: Any) -> dict[str, Any]:
    plain = {"tokens": 3, "visits": 1, "value": 0.5, "solution": False, "reward": None, "answer": None}
    return {"query_id": query_id, "node": number, "parent": parent, "text": text, **plain, **given}


def solution(query_id: str, number: int, parent: int, text: str, reward: float | None) -> dict[str, Any]:
    return node(query_id, number, parent, text, solution=True, reward=reward, answer=text.split()[-2])


#  root - 1 + 1 = 2 .  - 2 + 1 = 3 . - answer : 3 .   right, .7
#       |              |             - answer : 4 .   wrong, .8
#       |              - answer : 3 .                 right, .9
#       - 1 + 1 = 5 .  - answer : 5 .                 wrong, .95
TREE = [
    node("a", 0, None, ""),
    node("a", 1, 0, " 1 + 1 = 2 ."),
    node("a", 2, 1, " 2 + 1 = 3 ."),
    node("a", 3, 0, " 1 + 1 = 5 ."),
    solution("a", 4, 2, " answer : 3 .", 0.7),
    solution("a", 5, 2, " answer : 4 .", 0.8),
    solution("a", 6, 1, " answer : 3 .", 0.9),
    solution("a", 7, 3, " answer : 5 .", 0.95),
]
UNSOLVED = [node("b", 0, None, ""), solution("b", 1, 0, " answer : 1 .", 0.5)]
EMPTY = [node("c", 0, None, "")]
LOOSE = [node("d", 0, None, ""), solution("d", 1, 0, " 7 it is", 0.9), solution("d", 2, 0, " answer : 7 .", None)]
RIGHT = {
    ("a", 4): True,
    ("a", 5): False,
    ("a", 6): True,
    ("a", 7): False,
    ("b", 1): False,
    ("d", 1): True,
    ("d", 2): True,
}


@pytest.fixture
def searched(world):
    return [
        world.table(SEARCHED, [*TREE, *UNSOLVED], "searched"),
        world.table(SEARCHED, [*EMPTY, *LOOSE], "searched-2"),
    ]


@pytest.fixture
def given(world, query, searched):
    plain = {"reward_model": None, "reward": 0.0, "format_reward": 0.0, "total": 0.0}
    rows = [{"query_id": name, "sample": n, "verified": held, **plain} for (name, n), held in RIGHT.items()]
    queries = world.table(QUERIES, [query(name, f"which day is {name} ?") for name in "abcd"], "queries")
    return {"searched": searched, "scores": world.table(SCORES, rows, "scores"), "queries": queries, "format": NANO}


def test_every_solution_is_a_response(world, model, searched):
    servers = TinyServers(world.work_dir)
    made = world.do(searched_solutions, searched=searched, policy=model, servers=servers)
    found = [(row["query_id"], row["sample"], row["solution"]) for row in world.rows(made)]
    assert found[0] == ("a", 4, "1 + 1 = 2 . 2 + 1 = 3 . answer : 3 .")
    assert [each[:2] for each in found] == [*(("a", n) for n in (4, 5, 6, 7)), ("b", 1), ("c", 0), ("d", 1), ("d", 2)]
    assert found[5][2] is None
    assert world.rows(made)[0]["completion_tokens"] == len(found[0][2].split())


def test_the_best_right_path_in_the_step_format_is_learned(world, given):
    made = world.do(best_paths, **given)
    (row,) = world.rows(made)
    assert (row["query_id"], row["sample"], row["query"]) == ("a", 6, "which day is a ?")
    assert (row["solution"], row["reward"], row["thoughts"]) == ("1 + 1 = 2 . answer : 3 .", pytest.approx(0.9), "")
    counts = world.counts(made)
    assert counts["dropped: no right solution"] == 2
    assert counts["dropped: no right solution in the step format"] == 1
    none = world.do(best_paths, key="2", **{**given, "format": StepFormat(delimiter=" .", answer="so :")})
    assert world.rows(none) == []
    assert world.counts(none) == {
        "read": 4,
        "dropped: no right solution": 2,
        "dropped: no right solution in the step format": 2,
    }


def test_the_branches_that_part_latest_are_compared(world, given, model):
    more = {"config": OutcomePairConfig(), "iteration": 2, "model": model, "servers": TinyServers(world.work_dir)}
    made = world.do(pair_siblings, **given, **more)
    (row,) = world.rows(made)
    assert row["chosen"] == " 1 + 1 = 2 . 2 + 1 = 3 . answer : 3 ."
    assert row["rejected"] == " 1 + 1 = 2 . 2 + 1 = 3 . answer : 4 ."
    assert (row["chosen_sample"], row["rejected_sample"], row["iteration"]) == (4, 5, 2)
    assert (row["chosen_score"], row["rejected_score"]) == (pytest.approx(0.7), pytest.approx(0.8))
    assert "which day is a ?" in row["prompt"]
    assert world.counts(made) == {"queries": 4, "kept": 1, "dropped: no right solution beside a wrong one": 3}
    none = world.do(pair_siblings, key="2", **{**given, **more, "config": OutcomePairConfig(min_probability=0.95)})
    assert world.rows(none) == []
    assert world.counts(none) == {"queries": 4, "dropped: no right solution beside a wrong one": 4}


def test_siblings_are_those_worked_by_hand():
    found = [{**row, "right": RIGHT["a", row["node"]]} for row in reversed(TREE) if row["solution"]]
    both = siblings(TREE, found)
    assert both is not None
    assert [row["node"] for row in both] == [4, 5]
    without = [row for row in found if row["node"] != 5]  # then they part at the root
    both = siblings(TREE, without)
    assert both is not None
    assert [row["node"] for row in both] == [6, 7]
    assert siblings(TREE, [row for row in found if row["right"]]) is None
