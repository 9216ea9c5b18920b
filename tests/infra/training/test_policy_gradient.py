"""How far a policy is from pi_0, estimated on samples of the policy that the training began with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.training.policy_gradient import divergence


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_the_estimate_is_unbiased_over_samples_of_an_older_policy(seed: int) -> None:
    """Its mean over all tokens, weighted by the older policy, is the divergence itself."""
    torch.manual_seed(seed)
    policy, old, reference = (
        (3 * torch.randn(7, dtype=torch.float64)).log_softmax(0),
        *torch.randn(2, 7, dtype=torch.float64).log_softmax(1),
    )
    estimate = (old.exp() * divergence(policy, old, reference)).sum()
    assert float(estimate) == pytest.approx(float((policy.exp() * (policy - reference)).sum()), abs=1e-9)
    assert (divergence(policy, old, reference) >= -1e-12).all()


def test_a_token_that_the_policy_was_trained_away_from_counts_little() -> None:
    """Ten nats below pi_0, which sampled it: the unweighted estimate would be 22,000 nats."""
    old = reference = torch.tensor([-1.0])
    assert float(divergence(torch.tensor([-11.0]), old, reference)) == pytest.approx(1, abs=1e-3)
    assert float(divergence(old, old, reference)) == 0
