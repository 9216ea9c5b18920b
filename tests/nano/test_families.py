from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import last_stated, read

from evals.short_answer import extract, is_correct
from nano.families import FAMILIES, LEVELS
from nano.problem import Habits, other

families = st.sampled_from(list(FAMILIES))
levels = st.sampled_from(LEVELS)
seeds = st.integers(0, 2**32)


def problem_of(family: str, level: int, seed: int):
    return FAMILIES[family].sample(random.Random(seed), level)


@settings(max_examples=400, deadline=None)
@given(families, levels, seeds)
def test_the_answer_follows_from_the_text_of_the_query(family, level, seed):
    problem = problem_of(family, level, seed)
    assert read(problem.query) == (family, problem.facts, problem.answer)
    assert (problem.family, problem.level) == (family, level)


@settings(max_examples=300, deadline=None)
@given(families, levels, seeds, st.booleans())
def test_without_slips_every_writer_is_right(family, level, seed, careful):
    problem = problem_of(family, level, seed)
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(slip=0.0, careful=careful))
    assert worked.answer == problem.answer
    assert is_correct(extract(worked.solution), problem.answer)
    assert last_stated(problem.query, worked.solution) == problem.answer
    assert "wait" not in worked.thoughts
    assert ("check" in worked.thoughts) == careful


@settings(max_examples=300, deadline=None)
@given(families, levels, seeds, st.floats(0, 0.6), st.booleans())
def test_a_derivation_ends_in_what_its_steps_gave(family, level, seed, slip, careful):
    problem = problem_of(family, level, seed)
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(slip=slip, careful=careful))
    assert last_stated(problem.query, worked.solution) == worked.answer == extract(worked.solution)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_careful_writer_who_catches_all_is_right_and_a_careless_one_is_not(family):
    """What the nano world teaches: checking pays."""

    def share_right(habits: Habits) -> float:
        rng = random.Random(0)
        problems = [FAMILIES[family].sample(rng, 2) for _ in range(300)]
        return sum(FAMILIES[family].derive(p, rng, habits).answer == p.answer for p in problems) / 300

    assert share_right(Habits(0.2, careful=True, catch=1.0)) > share_right(Habits(0.2, careful=False)) + 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_perturbed_problem_is_another_of_its_family(family):
    """Almost always: a drawn change may happen to change nothing."""
    rng = random.Random(0)
    module, same, misled = FAMILIES[family], 0, 0
    for _ in range(400):
        problem = module.sample(rng, rng.choice(LEVELS[1:]))
        changed = module.perturb(problem, rng)
        assert (changed.family, changed.level) == (family, problem.level)
        assert (changed.query == problem.query) == (changed.facts == problem.facts)
        assert (
            module.derive(changed, rng, Habits(0.0, careful=False)).answer == changed.answer or changed.answer == "none"
        )
        same += changed.facts == problem.facts
        misled += changed.answer != problem.answer
    assert same <= 40
    assert misled >= 200


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
