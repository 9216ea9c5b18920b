"""Mutual improvement (STILL-1): each round trains the reward model on the policy's samples, and the policy on pairs
that the reward model chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, model_validator

from cot_formats.responses import PLAIN, Format
from flows.stages.mining import MineStage, ProblemsConfig
from flows.stages.run import Run
from flows.stages.sampling import sample, scored
from flows.stages.search_data import SearchData, searched
from flows.stages.summary import show_training
from infra.store.manifest import Ref, expect
from infra.training.config import DpoRecipe, SftRecipe
from tasks.exploration.merge import merge_longcot
from tasks.mutual.adapt import StepFormat
from tasks.mutual.choose import ActiveConfig, choose_judged
from tasks.mutual.judge import JudgeConfig, judge
from tasks.mutual.measure import measure_judge
from tasks.mutual.pair import OutcomePairConfig, pair_outcomes
from tasks.queries.draw import DrawConfig
from tasks.responses.generate import GenerateConfig
from tasks.rewards.score import ScoreConfig
from tasks.rewards.verify import Own, Verifier
from tasks.search.training_data import best_paths, pair_siblings
from tasks.training.dpo import train_dpo
from tasks.training.sft import train_sft


class PolicySampling(GenerateConfig):
    """How solutions are sampled."""

    samples: int = Field(8, ge=2, description="Number K of solutions per question (STILL-1 does not state it).")
    max_tokens: int = Field(2048, ge=1, description="Maximum length of a solution, in tokens (this project's choice).")
    max_truncated_share: float = Field(
        0.2, ge=0, le=1, description="Largest share of solutions cut at max_tokens; the step fails if there are more."
    )
    format: Format | None = Field(None, description="Leave out: solutions are plain text in steps.")  # type: ignore[assignment]
    seed: int = Field(0, description="Seed of sampling.")


class MutualStage(BaseModel, frozen=True, extra="forbid"):
    """Mutual improvement, in rounds."""

    rounds: int = Field(2, ge=0, le=20, description="Maximum number of rounds.")
    queries: MineStage = Field(
        description="Questions with a `reference` answer, for all rounds. Each round draws its own part, so "
        "`draw.limit` cannot be set here."
    )
    queries_per_round: int = Field(4_000, ge=1, description="Number of questions per round (this project's choice).")
    held_out: ProblemsConfig = Field(
        description="Held-out questions with a `reference` answer, on which reward model and policy are measured each "
        "round. They must not be the problems of the evaluation: they decide when the rounds end."
    )
    generate: PolicySampling = Field(PolicySampling(), description="How solutions are sampled.")
    verifier: Verifier | Own = Field("math500", description="How an answer is compared with the reference answer.")
    judge: JudgeConfig = Field(JudgeConfig(), description="How the reward model is asked about a solution.")
    choose: ActiveConfig = Field(ActiveConfig(), description="Which solutions the reward model is trained on.")
    reward: SftRecipe = Field(SftRecipe(), description="How the reward model is trained, from the adapted policy.")
    pair: OutcomePairConfig = Field(OutcomePairConfig(), description="Which samples become a preference pair.")
    dpo: DpoRecipe = Field(DpoRecipe(), description="How the policy is trained on the pairs.")
    reference: Literal["first", "previous"] = Field(
        "previous",
        description="The reference policy of each round's DPO: the adapted policy, or the policy that DPO begins with, "
        "that of the round before unless `search` fine-tunes it (STILL-1 does not state it; this project's choice).",
    )
    search: SearchData | None = Field(
        None, description="Training data from search. Null: none, only independent samples."
    )
    min_gain: float | None = Field(
        None,
        description="The rounds end once the policy's accuracy on the held-out questions rises by less than this, as a "
        "share. Null: all rounds are done.",
    )
    shards: int = Field(4, ge=1, le=400, description="Number of shards that the questions are split into.")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.queries.draw.limit is not None:
            raise ValueError("queries.draw.limit: set queries_per_round instead, the number of questions of each round")
        if self.generate.format not in (None, PLAIN):
            raise ValueError(f"generate.format is {self.generate.format}, but solutions are plain text: leave it out")
        return self

    def draw_of(self, number: int) -> DrawConfig:
        """How a round draws its own part of the questions. Fewer than `queries_per_round` are an error."""
        each = self.queries_per_round
        skip = self.queries.draw.skip + (number - 1) * each
        return self.queries.draw.model_copy(update={"skip": skip, "limit": each, "min_queries": each})


@dataclass
class Round:
    """What a round made."""

    reward_model: Ref
    measured: Ref
    """The reward model's calibration on held-out solutions of the adapted policy."""
    policy: Ref
    pairs: Ref
    chosen: Ref
    """What the reward model learned from in this round."""
    searched: dict[str, int] | None
    """The counts of the search for training data; None without one."""
    accuracy: float = 0.0
    """The policy's, on the held-out questions."""


class Unfinished(NamedTuple):
    """Why a round could not be finished."""

    why: str
    remedy: str


def fine_tuned(run: Run, step: str, config: SftRecipe, data: Ref, model: Ref) -> Ref:
    """A model fine-tuned on a table of queries and answers."""
    expected = int(data.rows * run.estimates.tokens_per_response * config.epochs)
    made = run.do(train_sft, step, expected_tokens=expected, config=config, longcot=data, model=model, hosts=run.hosts)
    show_training(run, made)
    return made


def solutions(run: Run, config: MutualStage, name: str, queries: Ref, policy: Ref, seed: int) -> tuple[list[Ref], Ref]:
    """K solutions of each question by the policy, and whether the answer of each is right."""
    draw = config.generate.model_copy(update={"format": PLAIN, "seed": config.generate.seed + seed})
    responses = sample(run, f"responses-{name}", draw, queries, policy, shards=config.shards)
    checked = ScoreConfig(verified_weight=1.0, verifier=config.verifier)  # no reward model is asked
    return responses, scored(run, f"scores-{name}", checked, responses, queries, None, shards=config.shards)


def accuracy_of(run: Run, scores: Ref) -> float:
    """The share of right solutions; those without words are wrong, and those without a verdict are left out."""
    counts = expect(run.store, scores).counts
    return float(counts["correct"] / max(1, counts["verified"] + counts["without a solution"]))


def nothing(run: Run, table: Ref) -> bool:
    """Whether a table is empty. A dry run does not know."""
    return not run.dry and not table.rows


def counted(run: Run, table: Ref) -> str:
    """The counts of a step, in words."""
    return ", ".join(f"{name}: {count}" for name, count in expect(run.store, table).counts.items())


def improve_round(
    run: Run,
    config: MutualStage,
    steps: StepFormat,
    number: int,
    queries: Ref,
    held_out: Ref,
    first: Ref,
    policy: Ref,
    reward_model: Ref | None,
    earlier: list[Ref],
    held_out_solutions: tuple[list[Ref], Ref],
) -> Round | Unfinished:
    """One round: sample, label, train the reward model, judge, pair, train the policy. It is not finished if there is
    nothing to learn from.

    Args:
        held_out: the held-out questions.
        first: the adapted policy P_0, which every reward model is trained from.
        policy: the policy of the round before.
        reward_model: that of the round before; None in the first round.
        earlier: what reward models learned from in earlier rounds.
        held_out_solutions: P_0's solutions of the held-out questions, and whether each is right.
    """
    responses, scores = solutions(run, config, f"round-{number}", queries, policy, number)
    asked: dict[str, Any] = {"config": config.judge, "responses": responses, "scores": scores, "queries": queries}
    before = run.do(judge, f"judged-before-{number}", model=reward_model, **asked)
    chosen = run.do(
        choose_judged,
        f"chosen-{number}",
        expected_rows=config.choose.limit,
        config=config.choose,
        judge=config.judge,
        judged=before,
        responses=responses,
        queries=queries,
    )
    if nothing(run, chosen):
        counts = expect(run.store, chosen).counts
        return Unfinished(
            f"of the {counts['different']} different solutions of round {number}, {counts['right']} are right and "
            f"{counts['wrong']} wrong, so that there is nothing to tell apart",
            "use easier or harder improve.queries, or raise improve.generate.samples or improve.generate.temperature",
        )
    tables = [*earlier, chosen]
    data = run.do(
        merge_longcot, f"reward-data-{number}", expected_rows=sum(each.rows for each in tables), tables=tables
    )
    reward_model = fine_tuned(run, f"sft-reward-{number}", config.reward, data, first)
    held, right = held_out_solutions
    tested = run.do(
        judge,
        f"judged-held-out-{number}",
        config=config.judge,
        responses=held,
        scores=right,
        queries=held_out,
        model=reward_model,
    )
    measured = run.do(measure_judge, f"calibration-{number}", judged=tested, queries=held_out)
    judged = run.do(judge, f"judged-{number}", model=reward_model, **asked)
    paired: dict[str, Any] = {"config": config.pair, "format": steps, "iteration": number, "queries": queries}
    found = None
    if config.search:
        asked = {"format": steps, "judge": config.judge, "queries": queries, "policy": policy}
        given = {**asked, "reward_model": reward_model, "shards": config.shards, "verifier": config.verifier}
        found = searched(run, config.search, number, **given)
    if found and config.search and config.search.learn != "pairs":
        best = run.do(best_paths, f"best-paths-{number}", expected_rows=queries.rows, format=steps, **found.tables)
        if nothing(run, best):
            return Unfinished(
                f"the search of round {number} found no right solution in steps ({counted(run, best)})",
                "use easier improve.queries, or raise improve.search.search.tokens",
            )
        policy = fine_tuned(run, f"sft-search-{number}", config.search.sft, best, policy)
    if found and config.search and config.search.learn != "solutions":
        given = {**paired, **found.tables, "model": policy}
        pairs = run.do(pair_siblings, f"pairs-{number}", expected_rows=queries.rows, **given)
    else:
        given = {**paired, "responses": responses, "judged": judged, "model": policy}
        pairs = run.do(pair_outcomes, f"pairs-{number}", expected_rows=queries.rows, **given)
    if nothing(run, pairs):
        return Unfinished(
            f"no question of round {number} has a right and a wrong solution to compare ({counted(run, pairs)})",
            "use other improve.queries, lower improve.pair.min_probability, or raise improve.pair.max_tokens or the "
            "number of solutions (improve.generate.samples, or improve.search.search.tokens)",
        )
    expected = int(4 * pairs.rows * run.estimates.tokens_per_response * config.dpo.epochs)
    trained = run.do(
        train_dpo,
        f"dpo-{number}",
        expected_tokens=expected,
        config=config.dpo,
        pairs=pairs,
        policy=policy,
        reference=first if config.reference == "first" else policy,
        hosts=run.hosts,
    )
    show_training(run, trained)
    return Round(reward_model, measured, trained, pairs, chosen, found.counts if found else None)
