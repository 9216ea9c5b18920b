"""Stage 1, LongCoT bootstrapping (BOLT section 3.1): examples, queries, generation in context, filtering, scoring, selection."""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.run import Common, Run, begin
from flows.sampling import sample, scored, shards_as_inputs
from infra.files import digest_of_files
from infra.manifest import Ref
from infra.steps import plan
from tasks.curate_examples import ExamplesConfig, curate_examples, example_files
from tasks.filter import filter_responses
from tasks.generate import GenerateConfig, PromptConfig, first_prompt
from tasks.mine_queries import QueriesConfig, mine_queries
from tasks.score import ScoreConfig
from tasks.select import SelectConfig, select


class BootstrapStage(BaseModel):
    """Stage 1's settings; the defaults are the paper's figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: ExamplesConfig
    queries: QueriesConfig
    prompt: PromptConfig = PromptConfig()
    generate: GenerateConfig = GenerateConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    shards: int = Field(
        16, ge=1, le=400, description="Pieces that the queries are generated in; each is a cached task."
    )


class BootstrapConfig(Common, BootstrapStage):
    """Parameters of the flow `bootstrap`."""


def curated(run: Run, config: ExamplesConfig) -> Ref:
    """The table of in-context examples."""
    files = {"files": digest_of_files(example_files(config))}
    return run.do(curate_examples, plan("examples", "tasks.curate_examples", config, {}, **files), config=config)


def mined(run: Run, config: QueriesConfig, step: str = "queries") -> Ref:
    """A table of queries (or of problems to evaluate on)."""
    files = {"files": digest_of_files([config.path, *config.held_out])}
    what = plan(step, "tasks.mine_queries", config, {}, **files)
    return run.do(mine_queries, what, expected_rows=config.limit or 0, config=config)


def bootstrap_stage(run: Run, config: BootstrapStage, examples: Ref, model: Ref, reward_model: Ref) -> Ref:
    """LongCoT data from a ShortCoT model: the table `longcot`."""
    queries = mined(run, config.queries)
    if run.dry:
        print(first_prompt(config.prompt, config.examples, config.queries, config.generate))
    responses = sample(
        run, "responses", config.generate, queries, model, shards=config.shards, prompt=config.prompt, examples=examples
    )
    filtered = run.do(
        filter_responses, plan("filtered", "tasks.filter", {}, shards_as_inputs(responses)), responses=responses
    )
    scores = scored(run, "scores", config.score, [filtered], queries, reward_model)
    inputs = {"responses": filtered, "scores": scores, "queries": queries, "model": model}
    what = plan("longcot", "tasks.select", config.select, inputs)
    return run.do(select, what, expected_rows=queries.rows, config=config.select, servers=run.servers, **inputs)


@flow
def bootstrap(config: BootstrapConfig) -> Ref:
    """Make a LongCoT data set from an instruct model and a handful of in-context examples."""
    with begin(config) as run:
        examples = curated(run, config.examples)
        return bootstrap_stage(run, config, examples, run.model(config.model), run.model(config.reward_model))
