"""`python -m flows nano/make`: make the nano world's two models from scratch, about an hour on two cores.

The models are shipped in nano/models.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from prefect import flow
from pydantic import Field

from flows.bootstrap import curated
from flows.stages.common import ALERTS, Common
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import sample
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from nano.config import PretrainRecipe
from nano.make import make_instruct, make_reward, reward_queries
from tasks.examples.read import ExamplesConfig
from tasks.responses.generate import GenerateConfig
from tasks.responses.prompt import PromptConfig


class InstructRecipe(PretrainRecipe):
    """How the instruct model is pretrained."""

    tokens: int = Field(8_500_000, ge=1, description="Number of training tokens.")


class RewardRecipe(PretrainRecipe):
    """How the reward model is trained: it starts from the instruct model, and learns from made-up mistakes and the
    instruct model's own."""

    tokens: int = Field(5_000_000, ge=1, description="Number of training tokens.")
    muon_lr: float = Field(0.01, gt=0, description="Peak learning rate of the weight matrices (Muon).")
    adam_lr: float = Field(1.5e-3, gt=0, description="Peak learning rate of embeddings, norms and heads (AdamW).")
    seed: int = Field(3, ge=0, lt=2**32, description="Seed of the initial weights and of the documents.")


class NanoConfig(Common):
    """Parameters of the flow `nano`. The shipped models were made with the defaults."""

    instruct: InstructRecipe = Field(InstructRecipe(), description="How the instruct model is pretrained.")
    reward: RewardRecipe = Field(RewardRecipe(), description="How the reward model is trained.")
    reward_queries: int = Field(
        2_400, ge=1, description="Number of problems whose answers the reward model is trained on."
    )
    samples: GenerateConfig = Field(description="How these answers are sampled from the instruct model.")
    examples: ExamplesConfig = Field(description="In-context examples in its prompts.")
    prompt: PromptConfig = Field(description="How in-context examples and a query become a prompt.")
    export: Path | None = Field(None, description="Folder that both models are copied to, e.g. nano/models.")


def exported(run: Run, model: Ref, target: Path) -> None:
    """Copy a model artifact to a plain folder."""
    source = fetch_model(run.store, model, run.servers.work_dir)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("manifest.json"))


@flow(task_runner=TASK_RUNNER, **ALERTS)
def nano(config: NanoConfig) -> None:
    """Make the nano world's models: pretrain one to answer, and grow a reward model from it."""
    with begin(config) as run:
        instruct = run.do(make_instruct, "nano-instruct", recipe=config.instruct)
        queries = run.do(
            reward_queries, "nano-reward-queries", expected_rows=config.reward_queries, count=config.reward_queries
        )
        examples = curated(run, config.examples)
        responses = sample(
            run, "nano-samples", config.samples, queries, instruct, shards=2, prompt=config.prompt, examples=examples
        )
        reward = run.do(
            make_reward,
            "nano-reward",
            recipe=config.reward,
            instruct=instruct,
            queries=queries,
            responses=responses,
        )

        if config.export and not run.dry:
            exported(run, instruct, config.export / "instruct")
            exported(run, reward, config.export / "reward")
