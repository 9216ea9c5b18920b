"""Sampling as every stage uses it: plan the shards, hand them to the server, get the tables' references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flows.stages.run import Run
from infra.steps.step import Plan, plan
from infra.store.manifest import Ref
from tasks.responses.generate import GenerateConfig, PromptConfig, generate, prompt_digest
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
    """Responses of `model` to all `queries`, a table a shard; with `prompt` and `examples`, in context."""
    inputs = {"queries": queries, "model": model} | ({"examples": examples} if examples else {})
    ingredients = {"engine": run.servers.engine("policy")} | ({"prompts": prompt_digest(prompt)} if prompt else {})
    limits = {"in_flight", "truncated_limit", "set_aside_limit"}  # they change no response
    what = config.model_dump(mode="json", exclude=limits)
    if prompt:
        what["prompt"] = prompt.model_dump(mode="json")
    shared = {"config": config, "queries": queries, "model": model, "servers": run.servers}
    shared |= {"shards": shards, "prompt": prompt, "examples": examples}
    jobs = [
        (
            plan(step, "tasks.responses.generate", {**what, "shard": n, "shards": shards}, inputs, **ingredients),
            {**shared, "shard": n},
        )
        for n in range(shards)
    ]
    return run.do_all(generate, jobs, queries.rows * config.samples * run.estimates.tokens_per_response)


def shards_as_inputs(responses: Sequence[Ref]) -> Mapping[str, Ref]:
    """The shards of one table as named inputs of the step that reads them all."""
    return {f"responses/{number}": ref for number, ref in enumerate(responses)}


def reward_model_of(run: Run, named: str) -> Ref:
    """The reward model that a user names, looked at before a GPU is used. A dry run copies nothing and does not look.

    Raises:
        infra.errors.BadInput: it has no chat template.
    """
    reward_model = run.model(named)
    if not run.dry:
        check_reward_model(run.store, reward_model)
    return reward_model


def scored(run: Run, step: str, config: ScoreConfig, responses: Sequence[Ref], queries: Ref, reward_model: Ref) -> Ref:
    """Rewards of all responses."""
    inputs = {**shards_as_inputs(responses), "queries": queries, "reward_model": reward_model}
    rule = config.model_dump(mode="json", exclude={"in_flight"})
    what: Plan = plan(step, "tasks.rewards.score", rule, inputs, engine=run.servers.engine("reward"))
    return run.do(
        score, what, config=config, responses=responses, queries=queries, reward_model=reward_model, servers=run.servers
    )
