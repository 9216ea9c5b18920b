"""Stage 1, LongCoT bootstrapping (BOLT section 3.1): examples, queries, sampling, filter, scores, selection."""

from __future__ import annotations

from collections import Counter

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.run import A_MODEL, ALERTS, TASK_RUNNER, Common, Run, begin
from flows.sampling import sample, scored, shards_as_inputs
from infra.files import digest_of_files
from infra.manifest import Ref
from infra.steps import plan
from tasks.curate_examples import ExamplesConfig, curate_examples, example_files
from tasks.filter import filter_responses
from tasks.generate import GenerateConfig, PromptConfig, first_prompt
from tasks.mine_queries import QueriesConfig, mine, mine_queries
from tasks.score import ScoreConfig
from tasks.select import SelectConfig, select


class BootstrapStage(BaseModel):
    """Stage 1's settings; the defaults are the paper's figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: ExamplesConfig = Field(description="In-context examples.")
    queries: QueriesConfig = Field(description="Queries to make LongCoT data for.")
    prompt: PromptConfig = Field(PromptConfig(), description="How examples and query become a prompt.")
    generate: GenerateConfig = Field(GenerateConfig(), description="How responses are sampled.")
    score: ScoreConfig = Field(ScoreConfig(), description="How responses are scored.")
    select: SelectConfig = Field(SelectConfig(), description="Which responses are kept.")
    shards: int = Field(
        16, ge=1, le=400, description="Pieces that the queries are generated in; each is a cached task."
    )


class BootstrapConfig(Common, BootstrapStage):
    """Parameters of the flow `bootstrap`."""

    model: str = Field(description=f"Instruct model that writes the data: {A_MODEL}.")
    reward_model: str = Field(description=f"Outcome reward model (a one-label sequence classifier): {A_MODEL}.")


def curated(run: Run, config: ExamplesConfig) -> Ref:
    """The table of in-context examples."""
    files = {"files": digest_of_files(example_files(config))}
    return run.do(curate_examples, plan("examples", "tasks.curate_examples", config, {}, **files), config=config)


def mined(run: Run, config: QueriesConfig, step: str = "queries") -> Ref:
    """A table of queries (or of problems to evaluate on). A dry run reads the files, to know how many there will be."""
    files = {"files": digest_of_files([config.path, *config.held_out])}
    what = plan(step, "tasks.mine_queries", config, {}, **files)
    expected = len(mine(config, Counter())) if run.dry else 0
    return run.do(mine_queries, what, expected_rows=expected, config=config)


def bootstrap_stage(
    run: Run, config: BootstrapStage, examples: Ref, queries: Ref, model: Ref, reward_model: Ref
) -> Ref:
    """LongCoT data from a ShortCoT model: the table `longcot`."""
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
    return run.do(
        select,
        what,
        expected_rows=queries.rows,
        config=config.select,
        responses=filtered,
        scores=scores,
        queries=queries,
        model=model,
        servers=run.servers,
    )


@flow(task_runner=TASK_RUNNER, **ALERTS)
def bootstrap(config: BootstrapConfig) -> Ref:
    """Make a LongCoT data set from an instruct model and a handful of in-context examples."""
    with begin(config) as run:
        model, reward_model = run.model(config.model), run.model(config.reward_model)
        examples, queries = curated(run, config.examples), mined(run, config.queries)
        return bootstrap_stage(run, config, examples, queries, model, reward_model)
