"""The SmolLM2 world: problems and their answers, the shipped data, the worked examples."""

from __future__ import annotations

import json
import random
import re

import pytest

from evals.everyday import extract, is_correct
from infra.settings import PROJECT_ROOT
from smollm2.problems import DAYS, FAMILIES, LEVELS, Problem, draw
from smollm2.write_data import COUNTS, distinct, record
from tasks.examples.read import read_example

WORLD = PROJECT_ROOT / "smollm2"
EXAMPLES = {
    "Mia has 9 shells and gets 8 more. How many shells does Mia have now?": ("+", 9, 8),
    "Omar has 14 coins and gives away 5. How many coins are left?": ("-", 14, 5),
    "What is 15 + 9?": ("+", 15, 9),
    "Which number is the largest: 30, 94 or 15?": ("largest", 15, 30, 94),
    "What is the smallest of the numbers 92, 50, 22, 36 and 85?": ("smallest", 22, 36, 50, 85, 92),
    "One ticket costs 8 dollars. How many dollars do 4 tickets cost?": (4, 8),
    "A ball costs 2 dollars and a lamp costs 4 dollars. How much are 2 balls and one lamp?": (2, 2, 4),
    "Which day of the week comes 4 days after Monday?": (0, 4),
    "Today is Sunday. Which day of the week is it in 5 days?": (6, 5),
    "Today is Friday. Which day of the week was it 3 days ago?": (4, -3),
}
"""The facts of the worked examples, by query: none of these problems, however worded, is in another split."""


def shipped(split: str) -> list[dict]:
    return [json.loads(line) for line in (WORLD / "data" / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_a_problem_states_all_that_its_answer_needs(family, level):
    rng = random.Random(level)
    for _ in range(200):
        problem = draw(rng, "queries", family, level)
        numbers = [int(each) for each in re.findall(r"\d+", problem.query)]
        if family == "day":
            start, count = problem.facts
            assert DAYS[start] in problem.query
            assert numbers == [abs(count)]
            assert DAYS.index(problem.answer) == (start + count) % 7
        else:
            given = [each for each in problem.facts if isinstance(each, int)]
            assert sorted(given) == sorted(numbers)
            assert int(problem.answer) >= 0
        assert is_correct(extract(f"It is {problem.answer}.", problem.answer), problem.answer)


def test_the_same_facts_are_in_the_same_split_however_worded():
    rng, splits = random.Random(0), {}
    for _ in range(3000):
        problem = draw(rng, rng.choice(list(COUNTS)), rng.choice(list(FAMILIES)), rng.choice(LEVELS))
        assert splits.setdefault((problem.family, problem.facts), problem.split) == problem.split


def test_the_shipped_data_are_what_the_writer_writes():
    rng = random.Random(20261128)
    for split, count in COUNTS.items():
        lines = [record(problem) for problem in distinct(rng, split, count)]
        assert (WORLD / "data" / f"{split}.jsonl").read_text().splitlines() == lines
        assert len(lines) == count


def test_no_query_is_in_two_files_or_in_an_example():
    texts = [row["messages"][0]["content"] for split in COUNTS for row in shipped(split)]
    texts += [read_example(path)["query"] for path in sorted((WORLD / "examples").glob("*.md"))]
    assert len(set(texts)) == len(texts)


def test_the_worked_examples_are_right():
    examples = [read_example(path) for path in sorted((WORLD / "examples").glob("*.md"))]
    assert len(examples) == 10
    assert {each["topic"] for each in examples} == set(FAMILIES)
    for each in examples:
        assert 30 <= len(each["thoughts"].split()) <= 60
        sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", f"{each['thoughts']} {each['solution']}")
        assert all(int(a) + (int(b) if sign == "+" else -int(b)) == int(c) for a, sign, b, c in sums)
        stated = re.search(r"The answer is (\w+)\.$", each["solution"])
        assert stated
        (facts,) = [facts for query, facts in EXAMPLES.items() if query == each["query"]]
        problem = Problem(each["topic"], 1, facts, each["query"], stated[1])
        assert problem.split == "examples"
