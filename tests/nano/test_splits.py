from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import is_solution, read

from cot_formats import bolt, still2
from cot_formats.actions import ACTIONS, find_actions
from infra.settings import PROJECT_ROOT
from nano import write_data
from nano.families import FAMILIES, LEVELS
from nano.problem import SPLITS, Problem
from nano.vocabulary import encoder
from tasks.examples.read import read_example
from tasks.queries.identity import query_id

NANO = PROJECT_ROOT / "nano"


def problem(query: str) -> Problem:
    family, facts, answer = read(query)
    return Problem(family, 0, facts, query, answer)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (NANO / "data" / name).read_text().splitlines()]


def texts(name: str) -> list[str]:
    return [row["messages"][0]["content"] for row in rows(name)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(FAMILIES)), st.integers(0, 2**32))
def test_a_split_belongs_to_the_problem_alone(family, seed):
    """Equal problems are in the same split whatever their level, so that splits are disjoint."""
    made = FAMILIES[family].sample(random.Random(seed), LEVELS[seed % 4])
    assert made.split in SPLITS
    assert problem(made.query).split == made.split


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_have_their_shares(family):
    rng = random.Random(0)
    found = Counter(FAMILIES[family].sample(rng, 3).split for _ in range(4000))
    shares = {"pretrain": 11, "reward": 3, "examples": 1, "queries": 3, "dev": 1, "test": 1}
    assert set(found) == set(shares) == set(SPLITS)
    assert all(abs(found[name] / 4000 - share / 20) < 0.03 for name, share in shares.items())


@pytest.mark.parametrize(("name", "count"), [("queries", 4800), ("dev", 300), ("test", 510), ("hard", 1200)])
def test_shipped_problems_are_in_their_own_split_with_the_right_answers(name, count):
    found = rows(f"{name}.jsonl")
    assert len(found) == count
    for row in found:
        given_problem = problem(row["messages"][0]["content"])
        assert given_problem.split == ("queries" if name == "hard" else name)
        assert row["topic"] == given_problem.family
        assert set(given_problem.query.split()) <= set(encoder())
        if name == "queries":
            assert "reference" not in row  # the method never sees a gold answer
        else:
            assert row["reference"] == given_problem.answer
            assert row["step_count"] >= 1
    assert {row["topic"] for row in found} == set(FAMILIES)


def test_the_teacher_is_right_and_wrote_on_no_problem_that_is_explored_or_held_out():
    lessons = rows("teacher.jsonl")
    assert len(lessons) == 900
    for row in lessons:
        given_problem = problem(row["question"])
        assert (given_problem.split, given_problem.family) == ("queries", row["domain"])
        parsed = still2.parse(row["combined_text"])
        assert parsed.ok
        assert parsed.solution.endswith(f"answer : {given_problem.answer} .")
        assert set(f"{parsed.thoughts} {parsed.solution}".split()) <= set(encoder())
    asked = {query_id(row["question"]) for row in lessons}
    assert not asked & {query_id(text) for text in texts("hard.jsonl")}


def test_many_more_queries_are_of_the_same_split():
    found = pq.read_table(NANO / "data" / "queries-large.parquet").to_pylist()
    assert len({row["query"] for row in found}) == 12_000
    assert all(problem(row["query"]).split == "queries" for row in found[::50])


def test_answered_queries_are_right_and_of_the_same_split():
    found = pq.read_table(NANO / "data" / "answered.parquet").to_pylist()
    assert len({row["query"] for row in found}) == 4_800
    for row in found[::20]:
        given_problem = problem(row["query"])
        assert (given_problem.split, given_problem.answer) == ("queries", row["reference"])


def test_shipped_examples_are_in_their_own_split_and_right():
    files = sorted((NANO / "examples").glob("*.md"))
    assert len(files) == 10
    for file in files:
        example = read_example(file)
        shown = problem(example["query"])
        assert shown.split == "examples"
        assert example["solution"].endswith(f"answer : {shown.answer} .")
        assert is_solution(example["query"], example["solution"])
        assert example["topic"] == shown.family
        assert file.name == f"{files.index(file) + 1:02d}-{shown.family}.md"
        words = " ".join((example["query"], example["thoughts"], example["solution"])).split()
        assert set(words) <= set(encoder())
        assert bolt.parse(bolt.render(example["thoughts"], example["solution"])).ok


def test_shipped_examples_show_at_least_three_of_the_four_reasoning_actions():
    """prefect.yaml requires three (min_actions). Some thoughts must show a mistake that is noticed."""
    thoughts = [read_example(file)["thoughts"] for file in (NANO / "examples").glob("*.md")]
    found = [{action.name for action in find_actions(each)} for each in thoughts]
    assert all(len(names & set(ACTIONS)) >= 3 for names in found)
    assert set().union(*found) == set(ACTIONS)
    assert sum("wait" in each.split() for each in thoughts) >= 4


def test_no_query_is_in_two_files():
    sets = {name: {query_id(text) for text in texts(f"{name}.jsonl")} for name in ("queries", "dev", "test")}
    sets["examples"] = {query_id(read_example(file)["query"]) for file in (NANO / "examples").glob("*.md")}
    assert len(set().union(*sets.values())) == sum(map(len, sets.values()))
    assert len(sets["dev"]) == 300
    assert len(sets["test"]) == 510
    assert len(sets["queries"]) == 4740  # of 4800, of which 60 are duplicates


def test_the_shipped_files_are_what_the_seed_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("data", "examples"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(write_data, "HERE", tmp_path)
    write_data.main()
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(made) == 17
    for path in made:
        if path.suffix == ".parquet":
            assert pq.read_table(tmp_path / path).equals(pq.read_table(NANO / path)), path
        else:
            assert (tmp_path / path).read_text() == (NANO / path).read_text(), path
