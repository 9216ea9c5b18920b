"""`python -m flows online/nano --set config.model=sft/KEY`: stage 3 alone, online training (BOLT section 3.3).

Each iteration samples from the policy, scores the samples, and trains on them: by DPO on pairs of the best and the
worst, or by a policy gradient on all of them. `online.rl.on_policy` samples while it trains instead.
"""

from __future__ import annotations

from typing import Any, Self

from prefect import flow
from pydantic import BaseModel, Field, model_validator

from flows.stages.common import A_MODEL, A_REWARD_MODEL, ALERTS, Trains
from flows.stages.guards import Watch
from flows.stages.mining import MineStage, drawn, mined, publish_mining
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import check_rewards, reward_model_of, rewardable, sample, scored
from flows.stages.summary import show_training
from infra.steps.step import Step
from infra.store.manifest import Ref
from infra.training.config import UNUSED, DpoRecipe, Method, RlRecipe
from tasks.queries.draw import DrawConfig
from tasks.responses.generate import GenerateConfig
from tasks.rewards.drift import Guards
from tasks.rewards.group import group
from tasks.rewards.pair import PairConfig, pair
from tasks.rewards.score import ScoreConfig
from tasks.training.dpo import train_dpo
from tasks.training.on_policy import check_batch, train_on_policy
from tasks.training.rl import train_rl


class OnlineStage(BaseModel, frozen=True, extra="forbid"):
    """Settings of stage 3; the defaults are the paper's figures."""

    iterations: int = Field(
        3, ge=0, le=20, description="Number of iterations of sampling and training (BOLT: 3); 0 ends with SFT."
    )
    queries: MineStage = Field(
        description="Queries for all iterations. Each iteration draws its own part, so `draw.limit` cannot be set "
        "here. The run stops if there are too few."
    )
    queries_per_iteration: int = Field(33_000, ge=1, description="Number of queries per iteration (BOLT: 33k).")
    generate: GenerateConfig = Field(GenerateConfig(), description="How responses are sampled from the policy.")
    score: ScoreConfig = Field(ScoreConfig(), description="How samples are scored.")
    method: Method = Field(
        "dpo", description="How the policy is trained on its samples: `dpo` (BOLT), or `rloo`, `reinforce` or `grpo`."
    )
    pair: PairConfig = Field(PairConfig(), description="DPO: which samples become a preference pair.")
    dpo: DpoRecipe = Field(DpoRecipe(), description="DPO: how the policy is trained on the preference pairs.")
    rl: RlRecipe = Field(RlRecipe(), description="RLOO, REINFORCE, GRPO: how the policy is trained on all samples.")
    guards: Guards = Field(Guards(), description="How far a policy may drift from pi_0 before the run is stopped.")
    shards: int = Field(
        16, ge=1, le=400, description="Number of shards that the queries are split into; each shard is a cached task."
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.queries.draw.limit is not None:
            raise ValueError(
                "queries.draw.limit: set queries_per_iteration instead, the number of queries of each iteration"
            )
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        """Refuse settings that the method does not use. Those of DPO may stay: presets have them."""
        plain = RlRecipe()
        fields = RlRecipe.model_fields if self.method == "dpo" else UNUSED[self.method]
        for name in (name for name in fields if getattr(self.rl, name) != getattr(plain, name)):
            raise ValueError(f"rl.{name} is set, but method is {self.method}, which does not use it: leave it out")
        return self

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        """Policy gradients compare the samples of a query, which must differ."""
        draw = self.generate
        if self.method != "dpo" and not draw.temperature:
            raise ValueError(f"generate.temperature is 0, but method {self.method} needs samples that differ: raise it")
        if (self.method in ("rloo", "grpo") or self.on_policy) and draw.samples < 2:
            why = f"method {self.method} compares the samples of a query"
            if self.method == "reinforce":
                why = "TRL's trainers draw at least two samples of a query (rl.on_policy)"
            raise ValueError(f"generate.samples is 1, but {why}: set it to 2 or more")
        if self.on_policy:
            if self.rl.clip != RlRecipe().clip:
                raise ValueError(
                    "rl.clip is set, but with rl.on_policy each sample gets one update by the policy that drew it, so "
                    "that no ratio is clipped: leave it out"
                )
            check_batch(self.rl, draw.samples, draw.max_tokens)
            if draw.end_at_close:
                raise ValueError("generate.end_at_close is set, but rl.on_policy cannot do that: set either to false")
        return self

    @property
    def on_policy(self) -> bool:
        """Whether each iteration samples while it trains."""
        return self.method != "dpo" and self.rl.on_policy

    @property
    def recipe(self) -> DpoRecipe | RlRecipe:
        """How each iteration trains."""
        return self.dpo if self.method == "dpo" else self.rl

    @property
    def setting(self) -> str:
        """The recipe's place in a flow's parameters."""
        return f"config.online.{'dpo' if self.method == 'dpo' else 'rl'}"

    def draw_of(self, iteration: int) -> DrawConfig:
        """How an iteration draws its own part of the queries. Fewer than `queries_per_iteration` are an error."""
        each = self.queries_per_iteration
        skip = self.queries.draw.skip + (iteration - 1) * each
        return self.queries.draw.model_copy(update={"skip": skip, "limit": each, "min_queries": each})


class OnlineConfig(Trains):
    """Parameters of the flow `online`."""

    model: str = Field(
        description=f"SFT model: the initial policy, and the reference policy pi_0 of all iterations: {A_MODEL}."
    )
    reward_model: str | None = Field(description=A_REWARD_MODEL)
    online: OnlineStage = Field(description="Iterative online training.")

    @model_validator(mode="after")
    def _rewards(self) -> Self:
        check_rewards(self.reward_model, self.online.score, "online.score")
        if not self.online.iterations:
            raise ValueError("online.iterations is 0, so that there is nothing to do: set it to 1 or more")
        return self


def online_queries(run: Run, config: OnlineStage) -> dict[int, Ref]:
    """The queries of every iteration, by its number, mined before a GPU is used.

    The last iteration draws first, so that the error on too few queries says how many all iterations need.

    Raises:
        BadInput: there are too few queries.
    """
    iterations = range(config.iterations, 0, -1)
    if not iterations:
        return {}
    queries = mined(run, config.queries)
    return {number: drawn(run, f"queries-online-{number}", config.draw_of(number), queries) for number in iterations}


def online_iteration(
    run: Run,
    config: OnlineStage,
    iteration: int,
    queries: Ref,
    policy: Ref,
    reference: Ref,
    reward_model: Ref | None,
    watch: Watch,
) -> Ref:
    """The policy after one more iteration. `reference` is pi_0, the SFT model, in every iteration.

    Raises:
        infra.errors.GuardError: the policy that the iteration starts with has drifted too far from pi_0.
    """
    draw = config.generate.model_copy(update={"seed": config.generate.seed + iteration})
    if config.on_policy:
        watch.measure(iteration - 1, policy)
        watch.stop_if_tripped()
        sampling = draw.model_dump(include={"samples", "temperature", "top_p", "max_tokens", "format"})
        given = {"queries": queries, "score": config.score, "reward_model": reward_model, **sampling}
        return trained(run, config, iteration, train_on_policy, policy, reference, **given)
    responses = sample(run, f"responses-online-{iteration}", draw, queries, policy, shards=config.shards)
    scores = scored(
        run, f"scores-online-{iteration}", config.score, responses, queries, reward_model, shards=config.shards
    )
    watch.responses[iteration - 1], watch.scores[iteration - 1] = responses, scores
    watch.measure(iteration - 1, policy)
    watch.stop_if_tripped()
    found: dict[str, Any] = {"iteration": iteration, "responses": responses, "scores": scores, "queries": queries}
    if config.method == "dpo":
        pairs = run.do(pair, f"pairs-{iteration}", config=config.pair, model=policy, **found)
        return trained(run, config, iteration, train_dpo, policy, reference, pairs=pairs)
    samples = run.do(group, f"samples-{iteration}", model=policy, **found)
    temperature = draw.temperature
    return trained(run, config, iteration, train_rl, policy, reference, samples=samples, temperature=temperature)


def trained(run: Run, config: OnlineStage, iteration: int, step: Step, policy: Ref, reference: Ref, **data: Any) -> Ref:
    """The policy, trained by the iteration's step on its data."""
    # DPO reads a pair under policy and reference. The passes of a policy gradient that only compute log-probabilities,
    # of each sample under two policies, count as one epoch.
    epochs = config.recipe.epochs
    read = 4 * epochs if config.method == "dpo" else (epochs + 1) * config.generate.samples
    expected = int(read * config.queries_per_iteration * run.estimates.tokens_per_response)
    named: dict[str, Any] = {} if config.method == "dpo" else {"method": config.method}
    return run.do(
        step,
        f"{config.method}-{iteration}",
        expected_tokens=expected,
        config=config.recipe,
        policy=policy,
        reference=reference,
        hosts=run.hosts,
        **named,
        **data,
    )


@flow(task_runner=TASK_RUNNER, **ALERTS)
def online(config: OnlineConfig) -> Ref:
    """Train an SFT model online, in iterations; the given model is pi_0."""
    with begin(config) as run:
        trains, formats = {config.online.setting: config.online.recipe}, (config.online.generate.format,)
        reference = policy = run.model(config.model, trains=trains, formats=formats)
        reward_model = reward_model_of(run, config.reward_model, on_server=config.online.on_policy)
        stage = config.online.model_copy(update={"queries": rewardable(config.online.queries, config.reward_model)})
        queries = online_queries(run, stage)
        publish_mining(run, [*queries.values()])
        watch = Watch(run, config.online.guards, config.online.recipe.guards)
        for iteration in range(1, config.online.iterations + 1):
            policy = online_iteration(
                run, config.online, iteration, queries[iteration], policy, reference, reward_model, watch
            )
            show_training(run, policy)
        watch.measure(config.online.iterations, policy)
        watch.stop_if_tripped()
        return policy
