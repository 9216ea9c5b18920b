from __future__ import annotations

import json
from typing import Any

import pytest
from layouts import math500, zebra

import tasks.evaluation.grade
from evals.graders import short_answer
from infra.errors import BadInput
from infra.processes.limited import Limited, LimitedError
from infra.store.schemas import GRADES, PROBLEMS, QUERIES, RESPONSES
from tasks.evaluation.grade import grade, grade_row
from tasks.evaluation.problems import READ, as_row


def test_a_row_has_the_grade_and_the_faults_of_the_response(response):
    found = {"prediction": "p", "correct": True, "parts": 6, "correct_parts": 6}
    row = grade_row(response("a", 3, thought_tokens=7, solution_tokens=8), found)
    ended = {"thought_tokens": 7, "solution_tokens": 8, "truncated": False, "malformed": False}
    assert row == {"problem_id": "a", "sample": 3, **found, **ended}
    assert list(row) == GRADES.names
    cut = grade_row(response(finish_reason="length", violations=["no_solution"]), found)
    assert (cut["truncated"], cut["malformed"]) == (True, True)


def test_only_the_solution_is_graded(world, query, response):
    problems = world.table(QUERIES, [query("q", reference="ann")], "problems")
    right = {"thoughts": "answer : ann .", "text": "answer : ann ."}
    solutions = ["answer : bob .", None, "Answer: Ann."]
    rows = [response("q", number, **right, solution=each) for number, each in enumerate(solutions)]
    made = world.do(grade, responses=[world.table(RESPONSES, rows)], problems=problems)
    found = [(r["prediction"], r["correct"]) for r in world.rows(made)]
    assert found == [("bob", False), (None, False), ("Ann", True)]
    assert found == [(g["prediction"], g["correct"]) for g in (short_answer(each, "ann") for each in solutions)]


def test_the_step_grades_every_shard_and_tallies(world, query, response, bars):
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
        (r["problem_id"], r["sample"], r["prediction"], r["correct"], r["truncated"], r["malformed"])
        for r in world.rows(made)
    ]
    assert found == [
        ("a", 0, "mon", True, False, False),
        ("a", 1, None, False, False, False),
        ("b", 0, "2", True, True, True),
    ]
    assert (world.rows(made)[0]["thought_tokens"], world.rows(made)[0]["solution_tokens"]) == (4, 4)
    assert world.counts(made) == {"graded": 3, "correct": 2, "no answer": 1}
    assert bars == {"made": 1.0}


def test_a_problem_whose_request_was_quarantined_is_graded_wrong(world, query, response):
    problems = world.table(QUERIES, [query(name, reference="mon") for name in "abc"], "problems")
    rows = [response(name, n, solution="answer : mon .") for name in "ac" for n in range(2)]
    made = world.do(grade, responses=[world.table(RESPONSES, rows)], problems=problems)
    found = {(row["problem_id"], row["sample"]): row["correct"] for row in world.rows(made)}
    assert found == {(name, n): name != "b" for name in "abc" for n in range(2)}
    (nothing, _) = (row for row in world.rows(made) if row["problem_id"] == "b")
    assert (nothing["prediction"], nothing["thought_tokens"], nothing["truncated"]) == (None, 0, False)
    assert world.counts(made) == {"graded": 4, "correct": 4, "no answer": 0, "quarantined": 2}


@pytest.mark.parametrize("reference", ["5 km", "1/2", "yes", "50%", ""])
def test_references_that_no_everyday_answer_equals_are_named(world, query, response, reference):
    problems = world.table(QUERIES, [query("a", reference="Monday"), query("b", reference=reference)], "problems")
    answers = [world.table(RESPONSES, [response("a", 0), response("b", 0)])]
    with pytest.raises(BadInput, match=r"problems/k: field reference of 1 rows is neither a number nor .*\(first: b, "):
        world.do(grade, responses=answers, problems=problems, benchmark="everyday")


def test_problems_without_a_reference_are_named(world, query, response):
    problems = world.table(QUERIES, [query("a", reference="mon"), query("b"), query("c")], "problems")
    with pytest.raises(BadInput, match=r"problems/k: field reference is null in 2 rows \(first: b\)"):
        world.do(grade, responses=[world.table(RESPONSES, [response("a")])], problems=problems)


# ---- benchmarks


def problems_of(world: Any, benchmark: Any, *records: dict[str, Any]) -> Any:
    return world.table(PROBLEMS, [as_row(READ[benchmark](record, 0)) for record in records], "problems")


def test_math_is_graded_in_a_process_of_its_own(world, response):
    problems = problems_of(world, "math500", math500(1, r"\frac{1}{2}"), math500(2, "7"))
    first, second = "test/algebra/1.json", "test/algebra/2.json"
    rows = [
        response(first, 0, solution=r"It is \boxed{0.5}.", thoughts=r"\boxed{9}"),
        response(first, 1, solution=r"It is \boxed{2}."),
        response(second, 0, solution=None, thoughts=r"\boxed{7}"),
        response(second, 1, solution=r"\boxed{7}"),
    ]
    shards = [world.table(RESPONSES, rows[:1], key="k0"), world.table(RESPONSES, rows[1:], key="k1")]
    made = world.do(grade, responses=shards, problems=problems, benchmark="math500")
    assert [row["correct"] for row in world.rows(made)] == [True, False, False, True]
    assert [row["prediction"] is None for row in world.rows(made)] == [False, False, True, False]
    assert {(row["parts"], row["correct_parts"]) for row in world.rows(made)} == {(None, None)}
    assert world.counts(made) == {"graded": 4, "correct": 2, "no answer": 1}


def test_the_cells_of_a_puzzle_are_counted(world, response, monkeypatch):
    monkeypatch.setattr(tasks.evaluation.grade, "Limited", lambda *_, **__: pytest.fail("a process is not needed"))
    problems = problems_of(world, "zebralogic", zebra(1))
    houses = {"House 1": {"Name": "Eric", "Pet": "cat"}, "House 2": {"Name": "Arnold", "Pet": "fish"}}
    near = json.dumps({"reasoning": "r", "solution": houses})
    solutions = [near.replace("fish", "dog"), near, "no JSON", None]
    rows = [response("lgp-test-2x2-1", n, solution=each, thoughts=near) for n, each in enumerate(solutions)]
    made = world.do(grade, responses=[world.table(RESPONSES, rows)], problems=problems, benchmark="zebralogic")
    found = [(r["correct"], r["correct_parts"], r["parts"], r["prediction"] is None) for r in world.rows(made)]
    assert found == [(True, 4, 4, False), (False, 3, 4, False), (False, 0, 4, True), (False, 0, 4, True)]


@pytest.fixture
def limited(monkeypatch):
    """Replace the limits or the function that the step asks for."""

    def change(**changes: Any) -> None:
        def made(function: str, **limits: Any) -> Limited:
            settings = {"function": function, **limits, **changes}
            return Limited(settings.pop("function"), **settings)

        monkeypatch.setattr(tasks.evaluation.grade, "Limited", made)

    return change


def test_a_grader_that_runs_out_of_time_is_counted_and_grading_continues(world, response, limited):
    limited(function="graders_that_hang:hangs", timeout_s=0.5)
    problems = problems_of(world, "math500", math500(1, "7"))
    solutions = ["7", "hang", "7", "raise", "die", "7", None]
    rows = [response("test/algebra/1.json", n, solution=each) for n, each in enumerate(solutions)]
    made = world.do(grade, responses=[world.table(RESPONSES, rows)], problems=problems, benchmark="math500")
    assert [(row["prediction"], row["correct"]) for row in world.rows(made)] == [
        ("7", True),
        (None, False),
        ("7", True),
        (None, False),
        (None, False),
        ("7", True),
        (None, False),
    ]
    counts = {"not graded: time": 1, "not graded: raised": 1, "not graded: ended": 1}
    assert world.counts(made) == {"graded": 7, "correct": 3, "no answer": 4, **counts}


def test_a_grader_that_cannot_be_started_fails_the_step(world, response, limited):
    limited(function="evals.graders:poetry")
    problems = problems_of(world, "math500", math500(1))
    with pytest.raises(LimitedError, match="poetry"):
        world.do(
            grade,
            responses=[world.table(RESPONSES, [response("test/algebra/1.json")])],
            problems=problems,
            benchmark="math500",
        )
    assert not world.store.exists("made/k/manifest.json")


@pytest.mark.parametrize("benchmark", ["math500", "math-level5"])
def test_limited_graders_are_found_under_the_names_that_the_step_uses(benchmark):
    with Limited(f"evals.graders:{benchmark.replace('-', '_')}", timeout_s=60, memory_bytes=4 << 30) as child:
        assert child(r"so it is $\boxed{42}$. I hope it is correct.", "42")["correct"] is True
        assert child(None, "42") == {"prediction": None, "correct": False, "parts": None, "correct_parts": None}
