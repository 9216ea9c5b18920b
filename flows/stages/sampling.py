"""Sampling and scoring, as the stages use them."""

from __future__ import annotations

from collections.abc import Sequence

from flows.stages.run import Run
from infra.store.manifest import Ref
from tasks.responses.generate import GenerateConfig, generate
from tasks.responses.prompt import PromptConfig
from tasks.rewards.score import ScoreConfig, check_reward_model, score


def sample(
    run: Run,
    step: str,
    config: GenerateConfig,
    queries: Ref,
    model: Ref,
    *,
    shards: int,
    prompt: PromptConfig | None = None,
    examples: Ref | None = None,
) -> list[Ref]:
    """Sample responses of `model` to all `queries`, a table per shard; with `prompt` and `examples`, in context."""
    expected = queries.rows * config.samples * run.estimates.tokens_per_response
    inputs = {"config": config, "queries": queries, "model": model, "prompt": prompt, "examples": examples}
    return run.do_shards(generate, step, shards, expected_tokens=expected, **inputs)


def scored(run: Run, step: str, config: ScoreConfig, responses: Sequence[Ref], queries: Ref, reward_model: Ref) -> Ref:
    """Score all responses with the reward model: a table of rewards."""
    return run.do(score, step, config=config, responses=responses, queries=queries, reward_model=reward_model)


def reward_model_of(run: Run, named: str) -> Ref:
    """The reward model that a user names, checked before a GPU is used. A dry run copies and checks nothing.

    Raises:
        infra.errors.BadInput: it has no chat template.
    """
    reward_model = run.model(named)
    if not run.dry:
        check_reward_model(run.store, reward_model)
    return reward_model
