"""Training data from search (STILL-1): a round's questions are searched, and all solutions verified."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from flows.stages.run import Run
from flows.stages.sampling import scored
from infra.store.manifest import Ref, expect
from infra.training.config import SftRecipe
from tasks.mutual.adapt import StepFormat
from tasks.mutual.judge import JudgeConfig
from tasks.rewards.score import ScoreConfig
from tasks.rewards.verify import Own, Verifier
from tasks.search.ask import SearchSampling
from tasks.search.search_problems import search_problems
from tasks.search.strategies import SearchConfig
from tasks.search.training_data import searched_solutions


class SearchData(BaseModel, frozen=True, extra="forbid"):
    """Training data that a search finds, with the round's policy and its new reward model."""

    search: SearchConfig = Field(SearchConfig(), description="How the round's questions are searched.")
    sampling: SearchSampling = Field(SearchSampling(), description="How steps and solutions are sampled.")
    learn: Literal["solutions", "pairs", "both"] = Field(
        "both",
        description="`solutions`: the policy is fine-tuned on the best right solution of each tree before DPO. "
        "`pairs`: DPO is on right against wrong branches of the trees, not on pairs of independent samples (STILL-1 "
        "names training on search data as future work; this project's choice).",
    )
    verifier: Verifier | None = Field(
        None, description="How the answer of a solution is read, needed with `search.agree`, and only then."
    )
    sft: SftRecipe = Field(SftRecipe(), description="How the policy is fine-tuned on the solutions.")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if (self.verifier is None) != (self.search.agree is None):
            raise ValueError("`verifier` is needed with `search.agree`, and only then: set both, or neither")
        if self.learn == "pairs" and self.sft != SftRecipe():
            raise ValueError("sft is set, but with `learn: pairs` there is no SFT: leave it out")
        return self


@dataclass
class Found:
    """What a search for training data found."""

    tables: dict[str, Any]
    """The trees, the questions, and whether each solution of a tree is right, as the steps take them."""
    counts: dict[str, int]


def searched(
    run: Run,
    config: SearchData,
    number: int,
    *,
    format: StepFormat,
    judge: JudgeConfig,
    verifier: Verifier | Own,
    queries: Ref,
    policy: Ref,
    reward_model: Ref,
    shards: int,
) -> Found:
    """Search a round's questions, and verify all solutions."""
    trees = run.do_shards(
        search_problems,
        f"trees-{number}",
        shards,
        expected_tokens=queries.rows * config.search.tokens,
        config=config.search,
        sampling=config.sampling,
        format=format,
        judge=judge,
        verifier=config.verifier,
        queries=queries,
        policy=policy,
        reward_model=reward_model,
    )
    responses = run.do(searched_solutions, f"found-{number}", searched=trees, policy=policy)
    checked = ScoreConfig(verified_weight=1.0, verifier=verifier)
    scores = scored(run, f"scores-found-{number}", checked, [responses], queries, None, shards=shards)
    counts: Counter[str] = Counter()
    for tree in [] if run.dry else trees:
        counts.update(expect(run.store, tree).counts)
    return Found({"searched": trees, "scores": scores, "queries": queries}, dict(counts))
