from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from auditing import audit
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import CHAINS, chain, clues_in, is_solution, last_stated, moved, numbers, pairs, queries_in, read

from evals.short_answer import extract, is_correct
from nano.corpus import TABLES
from nano.families import FAMILIES, LEVELS, pair_sum
from nano.problem import Habits, Problem, other
from nano.vocabulary import encoder

families = st.sampled_from(list(FAMILIES))
levels = st.sampled_from(LEVELS)
seeds = st.integers(0, 2**32)
shares = st.floats(0, 1)
FACT = re.compile(r"(\w+) ([+-]) (\d+) = (\w+) \.")
MOVES = {"arithmetic": range(1, 7), "week": range(2, 7), "year": range(2, 7), "compass": range(1, 6)}
STATES = {"arithmetic": 21, "week": 7, "year": 12, "compass": 4}
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
    seen = audit(problem.query, worked.thoughts, worked.solution)
    assert (seen.slips, seen.caught, seen.kept) == (0, 0, 0)


@settings(max_examples=400, deadline=None)
@given(families, levels, seeds, st.floats(0, 0.6), st.booleans())
def test_a_derivation_ends_in_what_its_steps_gave(family, level, seed, slip, careful):
    problem = problem_of(family, level, seed)
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(slip=slip, careful=careful))
    assert last_stated(problem.query, worked.solution) == worked.answer == extract(worked.solution)
    assert set(f"{worked.thoughts} {worked.solution}".split()) <= set(encoder())


@settings(max_examples=600, deadline=None)
@given(families, levels, seeds, shares, st.booleans(), shares)
def test_every_line_follows_and_every_verdict_is_earned(family, level, seed, slip, careful, catch):
    """The audit reads every line: the query's words, the check that undoes the step, ok or wait, the true redo."""
    problem = problem_of(family, level, seed)
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(slip, careful, catch))
    seen = audit(problem.query, worked.thoughts, worked.solution)
    assert seen.answer == worked.answer
    assert seen.caught <= seen.slips
    if careful:
        assert seen.unchecked == 0
    else:
        assert seen.checks == seen.caught == 0


@settings(max_examples=300, deadline=None)
@given(families, levels, seeds, shares)
def test_what_a_writer_catches_was_wrong_and_is_put_right(family, level, seed, slip):
    problem = problem_of(family, level, seed)
    worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(slip, careful=True, catch=1.0))
    seen = audit(problem.query, worked.thoughts, worked.solution)
    assert is_solution(problem.query, worked.solution) == (worked.answer == problem.answer)
    if "guess" not in worked.thoughts:  # whoever overlooked the pair twice has nothing to check
        assert seen.kept == 0
        assert is_solution(problem.query, worked.solution)
    if family != "pair_sum":
        assert seen.caught == seen.slips


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CHAINS), levels, seeds, st.sampled_from([0.0, 1.0]))
def test_in_a_chain_every_slip_is_seen_and_carried_on_or_caught(family, level, seed, catch):
    """Every step is false here; missed, the next one starts from where it led."""
    problem = problem_of(family, level, seed)
    _, moves = chain(problem.query)
    for careful in (False, True):
        worked = FAMILIES[family].derive(problem, random.Random(seed), Habits(1.0, careful, catch))
        seen = audit(problem.query, worked.thoughts, worked.solution)
        found = len(moves) if careful and catch else 0
        assert (seen.slips, seen.caught, seen.kept) == (len(moves), found, len(moves) - found)
        assert seen.checks == (len(moves) if careful else 0)


@settings(max_examples=300, deadline=None)
@given(families, levels, seeds, st.floats(0, 0.6), st.booleans())
def test_a_derivation_never_looks_at_the_gold_answer(family, level, seed, slip, careful):
    problem = problem_of(family, level, seed)
    blind = replace(problem, answer="none", query="guess ?", level=0)
    habits = Habits(slip, careful)
    derive = FAMILIES[family].derive
    assert derive(blind, random.Random(seed), habits) == derive(problem, random.Random(seed), habits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_derivation_keeps_its_wrong_answer(family):
    """Wrong steps end in a wrong answer; only by luck (two slips that cancel, a happy guess) in the right one."""
    rng = random.Random(0)
    wrong = lucky = 0
    for _ in range(400):
        problem = FAMILIES[family].sample(rng, rng.choice(LEVELS))
        worked = FAMILIES[family].derive(problem, rng, Habits(0.3, careful=False))
        kept = audit(problem.query, worked.thoughts, worked.solution).kept
        assert kept or worked.answer == problem.answer
        wrong += kept > 0 and worked.answer != problem.answer
        lucky += kept > 0 and worked.answer == problem.answer
    assert wrong >= 100
    assert lucky <= 0.25 * wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_a_careful_writer_who_catches_all_is_right_and_a_careless_one_is_not(family):
    """What the nano world teaches: checking pays."""
    careful = share_right(family, (2,), Habits(0.2, careful=True, catch=1.0))
    assert careful > 0.97
    assert careful > share_right(family, (2,), Habits(0.2, careful=False)) + 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_careful_half_of_the_crowd_is_right_more_often(family):
    """With the crowd's own habits, at every level; the more steps, the more it pays."""
    gains = []
    for level in LEVELS:
        careful = share_right(family, (level,), Habits(careful=True))
        assert careful > 0.96
        gains.append(careful - share_right(family, (level,), Habits(careful=False)))
    assert min(gains) > 0.05
    assert gains[3] > max(0.15, gains[0] + 0.05)


def share_right(family: str, of_levels: tuple[int, ...], habits: Habits, count: int = 800) -> float:
    rng = random.Random(0)
    problems = [FAMILIES[family].sample(rng, rng.choice(of_levels)) for _ in range(count)]
    return sum(FAMILIES[family].derive(p, rng, habits).answer == p.answer for p in problems) / count


@pytest.mark.parametrize("family", CHAINS)
@settings(max_examples=200, deadline=None)
@given(seeds)
def test_a_chains_facts_are_true_steps(family, seed):
    told = FAMILIES[family].fact(random.Random(seed))
    found = FACT.fullmatch(told)
    assert found, told
    state, sign, count, led_to = found.groups()
    assert int(count) in MOVES[family]
    assert led_to == moved(family, state, sign, int(count))
    assert set(told.split()) <= set(encoder())
    assert not list(queries_in(told))


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_the_facts_of_sums_are_true(seed):
    told = pair_sum.fact(random.Random(seed))
    found = FACT.fullmatch(told)
    assert found, told
    a, sign, b, result = found.groups()
    assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    assert 1 <= int(b) <= 12
    assert set(told.split()) <= set(encoder())


def test_all_tables_together_cover_the_steps_and_never_contradict_each_other():
    """ "18 + 4 = 1" on the dial and "18 + 4 = 22" in a sum would teach neither."""
    rng, known = random.Random(0), {}
    for family in TABLES:
        for _ in range(6000):
            expression, _, result = family.fact(rng).removesuffix(" .").partition(" = ")
            assert known.setdefault(expression, result) == result
    for name in CHAINS:
        for state in FAMILIES[name].states:
            for n in MOVES[name]:
                assert {f"{state} + {n}", f"{state} - {n}"} <= set(known)


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


@pytest.mark.parametrize("family", CHAINS)
def test_the_longest_chain_misread_still_says_all_that_it_is(family):
    """A move repeated must not fall off the end of the ordinals."""
    rng = random.Random(0)
    for _ in range(100):
        problem = FAMILIES[family].sample(rng, 3)
        changed = FAMILIES[family].perturb(problem, rng)
        worked = FAMILIES[family].derive(changed, rng, Habits(0.0, careful=False))
        assert chain(changed.query) == changed.facts
        assert len(worked.steps) == len(changed.facts[1])
        assert worked.answer == changed.answer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_perturbed_problem_is_mostly_another(family):
    """A drawn change may happen to change nothing."""
    rng = random.Random(0)
    drawn = [FAMILIES[family].sample(rng, rng.choice(LEVELS[1:])) for _ in range(400)]
    changed = [FAMILIES[family].perturb(problem, rng) for problem in drawn]
    assert sum(a.facts == b.facts for a, b in zip(drawn, changed, strict=True)) <= 60
    assert sum(a.answer != b.answer for a, b in zip(drawn, changed, strict=True)) >= 240


@pytest.mark.parametrize("family", CHAINS)
def test_chains_reach_every_state_by_every_move(family):
    rng = random.Random(0)
    problems = [FAMILIES[family].sample(rng, 3) for _ in range(600)]
    assert len({problem.answer for problem in problems}) == STATES[family]
    found = {move for problem in problems for move in chain(problem.query)[1]}
    assert found == {(sign, n) for sign in "+-" for n in MOVES[family]}


def test_pairs_are_sought_among_different_numbers_up_to_twelve():
    rng = random.Random(0)
    lists = [numbers(FAMILIES["pair_sum"].sample(rng, rng.choice(LEVELS)).query)[:-1] for _ in range(600)]
    assert all(len(set(each)) == len(each) for each in lists)
    assert {n for each in lists for n in each} == set(range(1, 13))


def test_a_level_sets_how_many_moves_people_and_numbers_there_are():
    rng = random.Random(0)
    sizes = {"ordering": {0: {1}, 1: {2}, 2: {3}, 3: {4}}, "pair_sum": {0: {3}, 1: {4}, 2: {5}, 3: {6}}}
    for name, level in EVERY:
        drawn = [FAMILIES[name].sample(rng, level).query for _ in range(60)]
        if name in CHAINS:
            assert {len(chain(query)[1]) for query in drawn} == {0: {1}, 1: {2, 3}, 2: {4}, 3: {5, 6}}[level]
        elif name == "ordering":
            assert {len(clues_in(query)) for query in drawn} == sizes[name][level]
        else:
            assert {len(numbers(query)) - 1 for query in drawn} == sizes[name][level]


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
