"""Stage 3, iterative online DPO (BOLT section 3.3): sample from the policy, score, pair the best with the worst, train."""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.bootstrap import mined
from flows.run import Common, Run, begin
from flows.sampling import sample, scored, shards_as_inputs
from infra.manifest import Ref
from infra.steps import plan
from tasks.generate import GenerateConfig
from tasks.mine_queries import QueriesConfig
from tasks.pair import PairConfig, pair
from tasks.score import ScoreConfig
from tasks.train_dpo import DpoStage, train_dpo


class OnlineStage(BaseModel):
    """Stage 3's settings; the defaults are the paper's figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: int = Field(3, ge=1, le=20, description="Rounds of sampling and training (BOLT: 3).")
    queries: QueriesConfig = Field(description="Queries of all iterations; each iteration draws its own.")
    queries_per_iteration: int = Field(33_000, ge=1, description="Queries drawn for an iteration (BOLT: 33k).")
    generate: GenerateConfig = GenerateConfig()
    score: ScoreConfig = ScoreConfig()
    pair: PairConfig = PairConfig()
    dpo: DpoStage = DpoStage()
    shards: int = Field(16, ge=1, le=400, description="Pieces that the samples are drawn in; each is a cached task.")


class OnlineConfig(Common):
    """Parameters of the flow `online`."""

    online: OnlineStage


def online_iteration(
    run: Run, config: OnlineStage, iteration: int, policy: Ref, reference: Ref, reward_model: Ref
) -> Ref:
    """The policy after one more iteration. `reference` is pi_0, the SFT model, whatever the iteration."""
    drawn = {
        "skip": config.queries.skip + (iteration - 1) * config.queries_per_iteration,
        "limit": config.queries_per_iteration,
    }
    queries = mined(run, config.queries.model_copy(update=drawn), f"queries-online-{iteration}")
    draw = config.generate.model_copy(update={"seed": config.generate.seed + iteration})
    responses = sample(run, f"responses-online-{iteration}", draw, queries, policy, shards=config.shards)
    scores = scored(run, f"scores-online-{iteration}", config.score, responses, queries, reward_model)
    inputs = {**shards_as_inputs(responses), "scores": scores, "queries": queries, "model": policy}
    what = plan(
        f"pairs-{iteration}", "tasks.pair", {**config.pair.model_dump(mode="json"), "iteration": iteration}, inputs
    )
    pairs = run.do(
        pair,
        what,
        config=config.pair,
        iteration=iteration,
        responses=responses,
        scores=scores,
        queries=queries,
        model=policy,
        servers=run.servers,
    )
    trained = {"pairs": pairs, "policy": policy, "reference": reference}
    expected = int(4 * config.queries_per_iteration * run.estimates.tokens_per_response * config.dpo.epochs)
    what = plan(f"dpo-{iteration}", "tasks.train_dpo", config.dpo, trained)
    return run.do(train_dpo, what, expected_tokens=expected, config=config.dpo, servers=run.servers, **trained)


@flow
def online(config: OnlineConfig) -> Ref:
    """Refine an SFT model (`model`) by online DPO; the model given is pi_0."""
    with begin(config) as run:
        reference = policy = run.model(config.model)
        reward_model = run.model(config.reward_model)
        for iteration in range(1, config.online.iterations + 1):
            policy = online_iteration(run, config.online, iteration, policy, reference, reward_model)
        return policy
