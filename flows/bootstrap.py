"""`python -m flows bootstrap/nano`: stage 1 alone, LongCoT bootstrapping (BOLT section 3.1).

In-context examples, mined queries, sampling, filtering by rule, rewards, and the selection of the best responses.
"""

from __future__ import annotations

from typing import Any, Self

from prefect import flow
from pydantic import BaseModel, Field, model_validator

from flows.publish import show_longcot
from flows.stages.common import A_MODEL, A_REWARD_MODEL, ALERTS, Common
from flows.stages.mining import MineStage, mine_stage, publish_mining
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import check_rewards, reward_model_of, rewardable, sample, scored
from infra.store.manifest import Ref
from tasks.curation.choose import Room, choose_examples, foreseen
from tasks.examples.read import ExamplesConfig
from tasks.responses.filter import FilterConfig, check_kept, filter_responses
from tasks.responses.generate import GenerateConfig
from tasks.responses.prompt import PromptConfig, first_prompt
from tasks.rewards.score import ScoreConfig
from tasks.rewards.select import SelectConfig, select


class BootstrapStage(BaseModel, frozen=True, extra="forbid"):
    """Settings of stage 1; the defaults are the paper's figures."""

    queries: MineStage = Field(description="Queries that LongCoT data are made for.")
    examples: ExamplesConfig = Field(ExamplesConfig(), description="In-context examples.")
    prompt: PromptConfig = Field(PromptConfig(), description="How in-context examples and a query become a prompt.")
    generate: GenerateConfig = Field(GenerateConfig(), description="How responses are sampled.")
    filter: FilterConfig = Field(FilterConfig(), description="Rules that drop responses.")
    score: ScoreConfig = Field(ScoreConfig(), description="How responses are scored by the outcome reward model.")
    select: SelectConfig = Field(SelectConfig(), description="Which of the scored responses are kept for SFT.")
    shards: int = Field(
        16, ge=1, le=400, description="Number of shards that the queries are split into; each shard is a cached task."
    )


class BootstrapConfig(Common, BootstrapStage):
    """Parameters of the flow `bootstrap`."""

    model: str = Field(description=f"Instruct model that writes the data: {A_MODEL}.")
    reward_model: str | None = Field(description=A_REWARD_MODEL)

    @model_validator(mode="after")
    def _rewards(self) -> Self:
        check_rewards(self.reward_model, self.score, "score")
        return self


def curated(
    run: Run,
    config: ExamplesConfig,
    model: Ref | None = None,
    room: Room | None = None,
    reward_model: Ref | None = None,
) -> Ref:
    """Choose in-context examples: those that fit into `room`, ranked if a reward model is given."""
    if run.dry and model and room and (folder := run.folders.get(model.digest)):
        print(foreseen(config, room, folder))
    return run.do(
        choose_examples,
        "examples",
        expected_rows=config.count,
        config=config,
        model=model,
        room=room,
        reward_model=reward_model,
    )


def curated_for(run: Run, config: BootstrapStage, model: Ref, max_model_len: int) -> Ref:
    """The examples of stage 1: any three leave room for a query and its response in the served model's context."""
    room = Room(prompt=config.prompt, max_tokens=config.generate.max_tokens, max_model_len=max_model_len)
    return curated(run, config.examples, model, room)


def bootstrap_stage(
    run: Run, config: BootstrapStage, examples: Ref, queries: Ref, model: Ref, reward_model: Ref | None
) -> Ref:
    """Make LongCoT data with a ShortCoT model: the table `longcot`."""
    if run.dry:
        print(
            first_prompt(
                config.prompt, config.examples, run.first_row(queries), config.generate.seed, config.generate.format
            )
        )
    responses = sample(
        run, "responses", config.generate, queries, model, shards=config.shards, prompt=config.prompt, examples=examples
    )
    given: dict[str, Any] = {"config": config.filter, "target": config.select.format, "responses": responses}
    given |= {"queries": queries, "examples": examples}
    filtered = run.do_shards(filter_responses, "filtered", config.shards, **given)
    if not run.dry:
        check_kept(run.store, filtered, **given)
    scores = scored(run, "scores", config.score, filtered, queries, reward_model, shards=config.shards)
    return run.do(
        select,
        "longcot",
        expected_rows=queries.rows,
        config=config.select,
        responses=filtered,
        scores=scores,
        queries=queries,
    )


@flow(task_runner=TASK_RUNNER, **ALERTS)
def bootstrap(config: BootstrapConfig) -> Ref:
    """Make a LongCoT data set with an instruct model and ten in-context examples."""
    with begin(config) as run:
        model = run.model(config.model, formats=(config.generate.format,))
        reward_model = reward_model_of(run, config.reward_model)
        examples = curated_for(run, config, model, config.serving.policy.max_model_len)
        queries = mine_stage(run, rewardable(config.queries, config.reward_model))
        publish_mining(run, [queries])
        longcot = bootstrap_stage(run, config, examples, queries, model, reward_model)
        if not run.dry:
            show_longcot(run.store, longcot)
        return longcot
