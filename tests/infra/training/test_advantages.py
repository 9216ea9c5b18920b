"""Advantages, against values computed by hand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.training.advantages import advantages, grpo, reinforce, rloo
from infra.training.config import RlRecipe

REWARDS = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


def test_rloo_takes_off_the_mean_of_the_others() -> None:
    assert rloo([1.0, 0.0, 0.5]) == pytest.approx([1 - 0.25, 0 - 0.75, 0.5 - 0.5])
    assert rloo([3.0]) == [0.0]


def test_grpo_takes_off_the_mean_and_divides_by_the_deviation() -> None:
    assert grpo([1.0, 0.0, 0.5], scaled=False) == pytest.approx([0.5, -0.5, 0.0])
    assert grpo([1.0, 0.0, 0.5], scaled=True) == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001, 0.0])
    assert grpo([3.0], scaled=True) == [0.0]


def test_reinforce_takes_off_a_moving_average_of_earlier_queries() -> None:
    groups = [[1.0, 0.0], [2.0, 1.0], [0.0]]
    assert [*reinforce(groups, None)] == groups
    # The baseline: 0.5 (the first query's mean), then 0.9 * 0.5 + 0.1 * 0.5 = 0.5, then 0.9 * 0.5 + 0.1 * 1.5 = 0.6.
    found = [each for group in reinforce(groups, 0.9) for each in group]
    assert found == pytest.approx([0.5, -0.5, 1.5, 0.5, -0.6])


@given(rewards=REWARDS, shift=st.floats(-10, 10))
def test_a_group_baseline_takes_off_what_all_samples_of_a_query_have(rewards: list[float], shift: float) -> None:
    for method in ("rloo", "grpo"):
        [one] = advantages(method, RlRecipe(), [rewards])
        [other] = advantages(method, RlRecipe(), [[each + shift for each in rewards]])
        assert other == pytest.approx(one, rel=1e-3, abs=1e-6 + 1e-3 * statistics.pstdev(rewards))
        assert sum(one) == pytest.approx(0, abs=1e-6 * max(1.0, *map(abs, one)) * len(one))


def test_equal_rewards_carry_no_signal_but_for_reinforce() -> None:
    groups = [[2.0, 2.0, 2.0]]
    assert [*advantages("rloo", RlRecipe(), groups)] == [*advantages("grpo", RlRecipe(), groups)] == [[0.0] * 3]
    assert [*advantages("reinforce", RlRecipe(), groups)] == groups
