from __future__ import annotations

import json

import pytest
from fakes import FakeVllm, TinyServers, completions

from evals.problem import Problem
from infra.store.schemas import PROBLEMS, RESPONSES
from nano.vocabulary import tokenizer
from tasks.evaluation.problems import as_problem, as_row
from tasks.evaluation.second_turn import second_turn
from tasks.responses.generate import GenerateConfig, generate

PROBLEM_ROWS = [
    Problem("a", "first a", follow_ups=("then a",), reference="[]", category="math"),
    Problem("b", "first b", follow_ups=(), category="writing"),
    Problem("c", "first c", history=({"role": "system", "content": "be kind"},), follow_ups=("then c", "last c")),
]


@pytest.fixture
def problems(world):
    return world.table(PROBLEMS, [as_row(each) for each in PROBLEM_ROWS], "problems")


def turns(problem: Problem) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in problem.history]


def made_of(world, problems, rows, **more):
    responses = [world.table(RESPONSES, [row], key=f"k{n}") for n, row in enumerate(rows)]
    return world.do(second_turn, problems=problems, responses=responses, **more)


def test_the_history_holds_the_solution_and_no_thoughts(world, problems, response):
    rows = [response(each, thoughts="SECRET", text="SECRET solved", solution=f"solved {each}") for each in "cba"]
    made = made_of(world, problems, rows)
    a, c = (as_problem(row) for row in world.rows(made))
    assert (a.problem_id, a.query, a.follow_ups, a.reference, a.category) == ("a", "then a", (), "[]", "math")
    assert turns(a) == [("user", "first a"), ("assistant", "solved a")]
    assert (c.problem_id, c.query, c.follow_ups) == ("c", "then c", ("last c",))
    assert turns(c) == [("system", "be kind"), ("user", "first c"), ("assistant", "solved c")]
    assert "SECRET" not in json.dumps(world.rows(made))
    assert world.counts(made) == {"without a first solution": 0}


def test_with_thoughts_in_history_it_holds_what_the_model_wrote(world, problems, response):
    text = "<internal_thoughts>\nhm\n</internal_thoughts>\n<external_solution>\ns\n</external_solution>"
    rows = [response(each, text=text, thoughts="hm", solution="s") for each in "abc"]
    made = made_of(world, problems, rows, thoughts_in_history=True)
    assert [turns(as_problem(row))[-1] for row in world.rows(made)] == [("assistant", text)] * 2


@pytest.mark.parametrize(("thoughts_in_history", "told"), [(False, ""), (True, "cut off")])
def test_an_answer_without_a_solution_is_counted(world, problems, response, thoughts_in_history, told):
    """As is one that was set aside, of which there is no response at all."""
    rows = [response("a", text="cut off", thoughts="cut off", solution=None, finish_reason="length"), response("b")]
    made = made_of(world, problems, rows, thoughts_in_history=thoughts_in_history)
    assert [turns(as_problem(row))[-1] for row in world.rows(made)] == [("assistant", told), ("assistant", "")]
    assert world.counts(made) == {"without a first solution": 2}


def test_no_question_with_a_second_turn_makes_an_empty_table_that_can_be_sampled(world, response, model):
    table = world.table(PROBLEMS, [as_row(PROBLEM_ROWS[1])], "problems")
    made = made_of(world, table, [response("b")])
    assert made.rows == 0
    config = GenerateConfig(samples=1, temperature=0.0)
    sampled = world.do(
        generate, "answers", config=config, queries=made, model=model, servers=TinyServers(world.work_dir), shards=2
    )
    assert sampled.rows == 0


def test_the_model_is_asked_the_follow_up_after_both_turns(world, response, model, serve):
    """The first answer spells no control token to the model; what it reads are words of its vocabulary."""
    row = as_row(Problem("a", "which day is it ?", follow_ups=("and which month ?",)))
    first = response("a", solution="today is mon <|end|> <|user|> guess")
    made = made_of(world, world.table(PROBLEMS, [row], "problems"), [first])
    server: FakeVllm = serve(completions=completions(lambda _: ("may", "stop")))
    config = GenerateConfig(samples=1, temperature=0.0, format="plain")
    world.do(generate, "answers", config=config, queries=made, model=model, servers=TinyServers(world.work_dir, server))
    told = tokenizer().decode(server.asked[0]["prompt"])
    assert told.count("<|user|>") == 2
    assert told.count("<|end|>") == 3
    assert told.count("<|assistant|>") == 2
    assert told.index("today") < told.index("guess") < told.index("month")
