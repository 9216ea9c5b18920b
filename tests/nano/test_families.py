from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import CHAINS, is_solution, last_stated, moved, pairs, read

from evals.short_answer import extract, is_correct
from nano.families import FAMILIES, LEVELS
from nano.problem import Habits, Problem, other
from nano.vocabulary import encoder

families = st.sampled_from(list(FAMILIES))
levels = st.sampled_from(LEVELS)
seeds = st.integers(0, 2**32)
STEP = re.compile(r"(?<!check )\b(\w+) ([+-]) (\d+) = (\w+) \.")  # a step as it was first stated
EVERY = [(family, level) for family in FAMILIES for level in LEVELS]


def problem_of(family: str, level: int, seed: int) -> Problem:
    return FAMILIES[family].sample(random.Random(seed), level)


def test_the_families_are_the_six_topics():
    assert list(FAMILIES) == ["arithmetic", "week", "year", "compass", "ordering", "pair_sum"]


@pytest.mark.parametrize(("family", "level"), EVERY)
@settings(max_examples=40, deadline=None)
@given(seeds)
def test_the_answer_follows_from_the_text_of_the_query(family, level, seed):
    problem = problem_of(family, level, seed)
    assert read(problem.query) == (family, problem.facts, problem.answer)
    assert (problem.family, problem.level) == (family, level)
    assert set(problem.query.split()) <= set(encoder())


@pytest.mark.parametrize(("family", "level"), EVERY)
@settings(max_examples=40, deadline=None)
@given(seeds, st.booleans())
def test_without_slips_every_writer_is_right(family, level, seed, careful):
    problem = problem_of(family, level, seed)
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(slip=0.0, careful=careful))
    assert worked.answer == read(problem.query)[2]
    assert is_correct(extract(worked.solution), problem.answer)
    assert is_solution(problem.query, worked.solution)
    assert "wait" not in worked.thoughts
    assert ("check" in worked.thoughts) == careful


@settings(max_examples=400, deadline=None)
@given(families, levels, seeds, st.floats(0, 0.6), st.booleans())
def test_a_derivation_ends_in_what_its_steps_gave(family, level, seed, slip, careful):
    problem = problem_of(family, level, seed)
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(slip=slip, careful=careful))
    assert last_stated(problem.query, worked.solution) == worked.answer == extract(worked.solution)
    assert set(f"{worked.thoughts} {worked.solution}".split()) <= set(encoder())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CHAINS), levels, seeds)
def test_a_slip_in_a_chain_is_visible_and_carried_on(family, level, seed):
    """With `slip` 1 every step is wrong, and the next one starts from its result."""
    problem = problem_of(family, level, seed)
    start, moves = problem.facts
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(slip=1.0, careful=False))
    state = start
    for stated, (sign, count) in zip(STEP.findall(worked.thoughts), moves, strict=True):
        assert stated[:3] == (state, sign, str(count))
        assert stated[3] != moved(family, state, sign, count)
        state = stated[3]
    assert worked.answer == state


@settings(max_examples=200, deadline=None)
@given(families, levels, seeds)
def test_what_a_writer_catches_was_wrong_and_is_corrected(family, level, seed):
    problem = problem_of(family, level, seed)
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(0.3, careful=True, catch=1.0))
    for a, sign, n, true, wrong in re.findall(
        r"check (\w+) ([+-]) (\d+) = (\w+) , wait , not (\w+) \.", worked.thoughts
    ):
        assert true != wrong
        assert family == "pair_sum" or moved(family, a, sign, int(n)) == true
        assert family != "pair_sum" or int(a) + int(n) == int(true)
    assert is_solution(problem.query, worked.solution) == (worked.answer == problem.answer)
    if family in CHAINS:
        assert worked.answer == problem.answer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_careful_writer_who_catches_all_is_right_and_a_careless_one_is_not(family):
    """The lesson of the nano world: checking pays."""

    def share_right(habits: Habits) -> float:
        rng = random.Random(0)
        problems = [FAMILIES[family].sample(rng, 2) for _ in range(300)]
        return sum(FAMILIES[family].derive(p, rng, habits).answer == p.answer for p in problems) / 300

    careful = share_right(Habits(0.2, careful=True, catch=1.0))
    assert careful > 0.97
    assert careful > share_right(Habits(0.2, careful=False)) + 0.2


@settings(max_examples=400, deadline=None)
@given(families, levels, seeds)
def test_a_perturbed_problem_can_be_solved(family, level, seed):
    rng = random.Random(seed)
    problem = FAMILIES[family].sample(rng, level)
    changed = FAMILIES[family].perturb(problem, rng)
    assert (changed.family, changed.level) == (family, problem.level)
    assert (changed.query == problem.query) == (changed.facts == problem.facts)
    solution = FAMILIES[family].derive(changed, rng, Habits(0.0, careful=False)).solution
    assert is_solution(changed.query, solution)
    assert set(solution.split()) <= set(encoder())
    if family == "pair_sum":  # a misread list may have several pairs that fit
        assert changed.answer in {f"{a} and {b}" for a, b in pairs(changed.query)}
    else:
        assert read(changed.query) == (family, changed.facts, changed.answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_perturbed_problem_mostly_differs(family):
    """A random change may happen to change nothing."""
    rng = random.Random(0)
    drawn = [FAMILIES[family].sample(rng, rng.choice(LEVELS[1:])) for _ in range(400)]
    changed = [FAMILIES[family].perturb(problem, rng) for problem in drawn]
    assert sum(a.facts == b.facts for a, b in zip(drawn, changed, strict=True)) <= 60
    assert sum(a.answer != b.answer for a, b in zip(drawn, changed, strict=True)) >= 240


@pytest.mark.parametrize("family", CHAINS)
def test_chains_reach_every_state(family):
    rng = random.Random(0)
    states = {"arithmetic": 31, "week": 7, "year": 12, "compass": 4}[family]
    assert len({FAMILIES[family].sample(rng, 3).answer for _ in range(600)}) == states


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), min_size=2, unique=True), seeds)
def test_other_is_never_the_same(options, seed):
    assert other(random.Random(seed), options, options[0]) in options[1:]


@settings(max_examples=100, deadline=None)
@given(families, levels, seeds)
def test_the_same_seed_gives_the_same_problem(family, level, seed):
    assert problem_of(family, level, seed) == problem_of(family, level, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_higher_levels_take_longer(family):
    def mean_words(level: int) -> float:
        rng = random.Random(0)
        problems = [FAMILIES[family].sample(rng, level) for _ in range(100)]
        return sum(len(FAMILIES[family].derive(p, rng, Habits(0.0)).thoughts.split()) for p in problems) / 100

    lengths = [mean_words(level) for level in LEVELS]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
