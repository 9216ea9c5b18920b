"""Lengths that cannot go together are found in the parameters, before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from small import bootstrap_parameters, small_world

from flows.bolt import BoltConfig
from flows.bootstrap import BootstrapConfig
from flows.evaluate import EvaluateConfig


@pytest.fixture
def world(tmp_path) -> dict[str, Any]:
    return small_world(tmp_path)


def served(policy: int, reward: int) -> dict[str, Any]:
    return {"policy": {"max_model_len": policy}, "reward": {"max_model_len": reward}}


def test_a_response_longer_than_the_policy_or_the_reward_model_reads_is_refused(world):
    assert BoltConfig(**world | {"serving": served(33, 33)})
    with pytest.raises(ValidationError) as caught:
        BoltConfig(**world | {"serving": served(32, 33)})
    for stage in ("bootstrap", "online", "evaluate"):
        assert (
            f"{stage}.generate.max_tokens is 32, but serving.policy.max_model_len is 32, which leaves no room for its "
            "prompt: lower the first, or raise the second"
        ) in str(caught.value)
    with pytest.raises(ValidationError) as caught:
        BoltConfig(**world | {"serving": served(33, 32)})
    for stage in ("bootstrap", "online"):
        assert f"{stage}.generate.max_tokens is 32, but serving.reward.max_model_len is 32" in str(caught.value)
    assert "evaluate.generate" not in str(caught.value)  # its answers are not scored


def test_without_a_reward_model_its_length_does_not_count(world):
    verified = {"score": {"verified_weight": 1.0}}
    world |= {"reward_model": None, "bootstrap": world["bootstrap"] | verified, "online": world["online"] | verified}
    assert BoltConfig(**world | {"serving": served(33, 1)})


def test_the_flows_of_single_stages_are_checked_as_well(world):
    with pytest.raises(ValidationError, match=r"generate\.max_tokens is 32, but serving\.reward\.max_model_len is 20"):
        BootstrapConfig(**bootstrap_parameters(world) | {"serving": served(64, 20)})
    models = [{"name": "m", "model": world["model"]}]
    with pytest.raises(ValidationError, match=r"benchmarks\.0\.generate\.max_tokens is 32, but serving\.policy"):
        EvaluateConfig(
            serving=served(20, 20), models=models, benchmarks=[{"benchmark": "short-answer", **world["evaluate"]}]
        )
