"""Advantages: by how much the reward of a sample exceeds what was to be expected of its query. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from infra.training.config import PolicyGradient, RlRecipe

_EPSILON = 1e-4
"""What TRL's GRPO adds to a standard deviation before it divides by it."""


def advantages(method: PolicyGradient, recipe: RlRecipe, groups: Iterable[Sequence[float]]) -> Iterator[list[float]]:
    """The advantages of each query's samples, from their rewards, query by query."""
    if method == "reinforce":
        yield from reinforce(groups, recipe.baseline_decay)
        return
    for rewards in groups:
        yield rloo(rewards) if method == "rloo" else grpo(rewards, scaled=recipe.scale_rewards)


def rloo(rewards: Sequence[float]) -> list[float]:
    """Each reward less the mean of the query's other rewards (RLOO, Ahmadian et al. 2024, arXiv 2402.14740, eq. 8).

    A sample without others has the advantage 0.
    """
    others, total = len(rewards) - 1, sum(rewards)
    return [reward - (total - reward) / others for reward in rewards] if others else [0.0]


def grpo(rewards: Sequence[float], *, scaled: bool) -> list[float]:
    """Each reward less the mean of the query's rewards, divided by their standard deviation if `scaled` (GRPO, Shao et
    al. 2024, arXiv 2402.03300, section 4.1.2; unscaled as Liu et al. 2025, arXiv 2503.20783, propose).

    The deviation is the unbiased one, as in TRL. A sample without others has the advantage 0.
    """
    mean = statistics.fmean(rewards)
    spread = statistics.stdev(rewards) + _EPSILON if scaled and len(rewards) > 1 else 1.0
    return [(reward - mean) / spread for reward in rewards]


def reinforce(groups: Iterable[Sequence[float]], decay: float | None) -> Iterator[list[float]]:
    """Each reward, less a moving average of the mean rewards of earlier queries if there is a `decay` (REINFORCE,
    Williams 1992).

    The average begins with the first query's own mean, and keeps the share `decay` of itself at each further one.
    """
    baseline: float | None = None
    for rewards in groups:
        mean = statistics.fmean(rewards)
        if decay is None:
            yield list(rewards)
            continue
        baseline = mean if baseline is None else baseline
        yield [reward - baseline for reward in rewards]
        baseline = decay * baseline + (1 - decay) * mean
