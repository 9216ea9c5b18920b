"""Sampling and scoring, as the stages use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cot_formats.responses import LongFormat
from flows.stages.mining import MineStage
from flows.stages.run import PENDING, Run
from infra.errors import BadInput
from infra.serving.armorm import is_armorm
from infra.serving.vllm_server import runs_on_cpu
from infra.store.manifest import Ref
from infra.store.model_files import CONFIG, ModelFiles
from tasks.responses.generate import GenerateConfig, generate
from tasks.responses.perplexity import PerplexityConfig, measure_perplexity
from tasks.responses.prompt import PromptConfig
from tasks.rewards.join import join_scores
from tasks.rewards.score import ScoreConfig, score


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
    """Sample responses of `model` to all `queries`, a table per shard; with `prompt` and `examples`, in context.

    Raises:
        infra.errors.BadInput: as `check_seeds`.
    """
    check_seeds(run, step, config.request_seeds, model)
    expected = queries.rows * config.samples * run.estimates.tokens_per_response
    inputs: dict[str, Any] = {
        "config": config,
        "queries": queries,
        "model": model,
        "prompt": prompt,
        "examples": examples,
    }
    return run.do_shards(generate, step, shards, expected_tokens=expected, **inputs)


def check_seeds(run: Run, step: str, request_seeds: bool, model: Ref, setting: str = "generate") -> None:
    """Raise `BadInput` if vLLM for CPU is to give each request a seed of its own, which kills it.

    `setting`: where `request_seeds` is set, for the message.
    """
    on_cpu = runs_on_cpu() and not run.servers.is_remote(model)
    if request_seeds and on_cpu and not run.dry:  # a dry run may plan for another machine
        raise BadInput(
            f"{step}: request_seeds is true, but a request with a seed of its own kills vLLM's CPU build: set "
            f"{setting}.request_seeds to false (the engine's own seed is serving.policy.seed)"
        )


def scored(
    run: Run,
    step: str,
    config: ScoreConfig,
    responses: Sequence[Ref],
    queries: Ref,
    reward_model: Ref | None,
    *,
    shards: int,
) -> Ref:
    """Score all responses: a table of rewards, `step`, whose name begins with `scores`.

    ArmoRM runs in the step itself, on GPUs of its own, and reads all responses in one call, so that it is loaded once.
    """
    inputs: dict[str, Any] = {"responses": responses, "queries": queries, "reward_model": reward_model}
    name = step.replace("scores", "rewards", 1)
    if _runs_in_step(run, reward_model):
        gpus = run.servers.options("reward").tensor_parallel_size
        rewards = [run.do(score, name, gpus=gpus, config=config, **inputs)]
    else:
        rewards = run.do_shards(score, name, shards, config=config, **inputs)
    return run.do(join_scores, step, rewards=rewards)


def _runs_in_step(run: Run, reward_model: Ref | None) -> bool:
    """Whether a reward model is ArmoRM; no, if a dry run does not know it yet."""
    if reward_model is None or reward_model.digest.startswith(PENDING):
        return False
    folder = run.folders.get(reward_model.digest)
    files = ModelFiles.in_folder(folder) if folder else ModelFiles.of(run.store, reward_model)
    return is_armorm(files.read(CONFIG))


def perplexities_of(
    run: Run,
    step: str,
    config: PerplexityConfig,
    texts: Sequence[Ref],
    queries: Ref,
    format: LongFormat,
    model: Ref,
    *,
    shards: int,
) -> list[Ref]:
    """The perplexity of the thoughts in `texts` under `model`, a table per shard."""
    expected = sum(table.rows for table in texts) * run.estimates.tokens_per_response
    inputs: dict[str, Any] = {"config": config, "texts": texts, "queries": queries, "format": format, "model": model}
    return run.do_shards(measure_perplexity, step, shards, expected_tokens=expected, **inputs)


def check_rewards(reward_model: str | None, score: ScoreConfig, place: str) -> None:
    """Raise `ValueError` if there would be no reward: no reward model, and nothing for a correct answer.

    `place`: where the settings `score` are in the flow's parameters.
    """
    if reward_model is None and not score.verified_weight:
        raise ValueError(
            f"reward_model is null, so that correct answers are the only reward: set {place}.verified_weight above 0 "
            "(and give each query a `reference`), or name a reward model"
        )


def rewardable(queries: MineStage, reward_model: str | None) -> MineStage:
    """How queries are mined: without a reward model, only those with a reference answer are drawn."""
    return queries if reward_model else queries.with_references()


def reward_model_of(run: Run, named: str | None, *, on_server: bool = False) -> Ref | None:
    """The reward model that a user names, checked before a GPU is used; None for none. Raises `BadInput` as
    `Run.model`."""
    return None if named is None else run.model(named, role="reward", on_server=on_server)
