from __future__ import annotations

import pytest

from infra.schemas import QUERIES, RESPONSES
from tasks.curate_examples import BadInput
from tasks.grade import grade, graded


def test_only_the_solution_is_graded(response):
    row = graded(response(thoughts="answer : 42 .", text="answer : 42 .", solution="answer : 41 ."), "42")
    assert (row["prediction"], row["correct"]) == ("41", False)
    assert graded(response(thoughts="answer : 42 .", solution=None), "42")["correct"] is False
    assert graded(response(solution="Answer: Ann."), "ann")["correct"] is True


def test_the_step_grades_every_shard_and_tallies(world, query, response):
    problems = world.table(QUERIES, [query("a", reference="mon"), query("b", reference="2")], "problems")
    shards = [
        [response("a", 0, solution="answer : mon ."), response("a", 1, solution="mon .")],
        [response("b", 0, solution="answer : 2", finish_reason="length", violations=["unclosed_solution"])],
    ]
    made = world.do(
        grade,
        responses=[world.table(RESPONSES, rows, key=f"k{n}") for n, rows in enumerate(shards)],
        problems=problems,
    )
    found = [
        (r["problem_id"], r["sample"], r["prediction"], r["correct"], r["truncated"], r["off_format"])
        for r in world.rows(made)
    ]
    assert found == [
        ("a", 0, "mon", True, False, False),
        ("a", 1, None, False, False, False),
        ("b", 0, "2", True, True, True),
    ]
    assert (world.rows(made)[0]["thought_tokens"], world.rows(made)[0]["solution_tokens"]) == (4, 4)
    assert world.counts(made) == {"graded": 3, "correct": 2, "no answer": 1}


def test_problems_without_a_reference_are_named(world, query, response):
    problems = world.table(QUERIES, [query("a", reference="mon"), query("b"), query("c")], "problems")
    with pytest.raises(BadInput, match=r"problems/k: field reference is null in 2 rows \(first: b\)"):
        world.do(grade, responses=[world.table(RESPONSES, [response("a")])], problems=problems)
