"""Make the nano world's two models from nothing (about an hour on two cores). They are shipped in nano/models."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.bootstrap import curated
from flows.run import Run, start
from flows.sampling import sample, shards_as_inputs
from infra.manifest import Ref
from infra.models import fetch_model
from infra.servers import ServingConfig
from infra.steps import plan
from nano.config import PretrainRecipe
from nano.make import make_instruct, make_reward, reward_queries
from tasks.curate_examples import ExamplesConfig
from tasks.generate import GenerateConfig, PromptConfig


class NanoConfig(BaseModel):
    """Parameters of the flow `nano`. Each model is trained in two legs, the second going on from the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruct: PretrainRecipe = PretrainRecipe()
    instruct_more: PretrainRecipe = PretrainRecipe(tokens=11_000_000, muon_lr=0.012, adam_lr=2e-3, seed=2)
    reward: PretrainRecipe = PretrainRecipe(tokens=8_000_000, muon_lr=0.01, adam_lr=1.5e-3, seed=1)
    reward_more: PretrainRecipe = PretrainRecipe(tokens=6_000_000, muon_lr=0.008, adam_lr=1e-3, seed=3)
    reward_queries: int = Field(
        2_400, ge=1, description="Problems that the policy answers for the reward model's second leg."
    )
    samples: GenerateConfig = Field(description="How the policy answers them.")
    examples: ExamplesConfig = Field(description="In-context examples that the policy is shown.")
    prompt: PromptConfig = Field(description="How it is shown them.")
    serving: ServingConfig
    export: Path | None = Field(None, description="Folder to copy both models to, e.g. nano/models.")
    dry_run: bool = Field(False, description="Print the plan and stop.")


def exported(run: Run, model: Ref, target: Path) -> None:
    """Copy a model artifact to a plain folder."""
    source = fetch_model(run.store, model, run.servers.work_dir)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("manifest.json"))


@flow
def nano(config: NanoConfig) -> None:
    """Pretrain the plain instruct model, grow the reward model from it, teach that one on the other's samples."""
    with start(config.dry_run, config.serving) as run:
        instruct = instructed(run, "nano-instruct", config.instruct)
        reward = rewarding(run, "nano-reward", config.reward, instruct)
        instruct = instructed(run, "nano-instruct-more", config.instruct_more, instruct)

        what = plan("nano-reward-queries", "nano.make", {"count": config.reward_queries}, {})
        queries = run.do(reward_queries, what, expected_rows=config.reward_queries, count=config.reward_queries)
        examples = curated(run, config.examples)
        responses = sample(
            run, "nano-samples", config.samples, queries, instruct, shards=2, prompt=config.prompt, examples=examples
        )
        reward = rewarding(run, "nano-reward-more", config.reward_more, reward, queries, responses)

        if config.export and not run.dry:
            exported(run, instruct, config.export / "instruct")
            exported(run, reward, config.export / "reward")


def instructed(run: Run, step: str, recipe: PretrainRecipe, start: Ref | None = None) -> Ref:
    what = plan(step, "nano.pretrain", recipe, {"start": start} if start else {})
    return run.do(make_instruct, what, recipe=recipe, servers=run.servers, start=start)


def rewarding(
    run: Run, step: str, recipe: PretrainRecipe, start: Ref, queries: Ref | None = None, responses: Sequence[Ref] = ()
) -> Ref:
    inputs = {"start": start, **shards_as_inputs(responses)} | ({"queries": queries} if queries else {})
    what = plan(step, "nano.pretrain_reward", recipe, inputs)
    return run.do(
        make_reward, what, recipe=recipe, start=start, servers=run.servers, queries=queries, responses=responses
    )
