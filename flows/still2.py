"""`python -m flows still2/nano`: imitate, explore, self-improve (STILL-2, arXiv 2412.09413).

A model is fine-tuned on long-form thoughts of another model. It explores hard problems that have an answer, and is
trained again on its own right solutions, in rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Self

from prefect import flow
from pydantic import BaseModel, Field, model_validator

from cot_formats.responses import LongFormat, delimiters
from flows.evaluate import EvaluateStage, Grades, evaluate_stage, stage_gains, stage_summary, steps_of
from flows.stages.common import A_MODEL, ALERTS, Trains
from flows.stages.exploration import (
    ExploreStage,
    explore_round,
    outcomes_of,
    picked,
    solved_in,
    thoughts_measured,
)
from flows.stages.imitation import (
    Imitated,
    ImitateStage,
    ImitationSft,
    check_lengths,
    imitate_stage,
    imitation_texts,
    trained,
)
from flows.stages.mining import MineStage, drawn, mined, publish_mining
from flows.stages.problems import check_references, problems_for
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import check_seeds
from flows.stages.still2_summary import publish_still2
from flows.stages.summary import publish_report, show_training
from infra.store.manifest import Ref
from infra.training.config import DpoRecipe, Recipe
from tasks.exploration.merge import merge_longcot
from tasks.exploration.pairs import pair_thoughts
from tasks.exploration.pick import PickConfig
from tasks.report.still2_page import still2_content
from tasks.training.dpo import train_dpo


class ThoughtsDpo(DpoRecipe, frozen=True):
    """DPO on thoughts alone: its completions are beginnings of responses."""

    end_token: bool = Field(False, description="Must be false: the thoughts are only the beginning of a response")


class ImproveStage(BaseModel, frozen=True, extra="forbid"):
    """Self-improvement: the model is trained again on what it explored."""

    method: Literal["sft", "dpo"] = Field(
        "sft",
        description="`sft`: on the imitated data and all right rollouts picked so far. `dpo`: on pairs of thoughts, "
        "right ones of high perplexity against wrong ones of low perplexity.",
    )
    start: Literal["base", "imitated"] = Field(
        "base",
        description="Which model each round's SFT begins with: the instruct model, or the one after imitation. DPO "
        "always begins with the latter, which is also its reference policy.",
    )
    rounds: int = Field(3, ge=0, le=20, description="Maximum number of rounds (STILL-2: until problems run out).")
    min_solved: int = Field(
        1, ge=1, description="A round that solves fewer new problems is the last, and its data are not trained on."
    )
    dpo: ThoughtsDpo = Field(
        ThoughtsDpo(), description="DPO on thoughts; `sft_coefficient` adds STILL-2's optional SFT loss."
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.method == "dpo" and "start" in self.model_fields_set and self.start != "imitated":
            raise ValueError("start is base, but DPO begins with the model after imitation: leave it out")
        if self.dpo.end_token:
            raise ValueError("dpo.end_token is true, but a response goes on after its thoughts: set it to false")
        return self


class Still2Config(Trains):
    """Parameters of the flow `still2`. Figures that STILL-2 states are the defaults; the others are BOLT's or this
    project's choice."""

    model: str = Field(description=f"Instruct model that is trained: {A_MODEL}.")
    format: LongFormat = Field("still2", description="The one format that all texts are brought to.")
    imitate: ImitateStage = Field(description="Imitation.")
    sft: ImitationSft = Field(ImitationSft(), description="Settings of every SFT in the flow.")
    explore: ExploreStage = Field(description="Exploration.")
    improve: ImproveStage = Field(ImproveStage(), description="Self-improvement.")
    evaluate: EvaluateStage = Field(description="Held-out evaluation of all models: instruct, imitated, each round's.")

    @model_validator(mode="after")
    def _delimited(self) -> Self:
        needs = any(source.continued for source in self.imitate.sources) or self.improve.method == "dpo"
        if needs and not delimiters(self.format):
            raise ValueError(f"format is {self.format}, which does not say where thoughts end: set another one")
        return self

    @model_validator(mode="after")
    def _right_and_wrong(self) -> Self:
        if self.improve.method == "dpo" and self.improve.rounds and self.explore.rollouts < 2:
            raise ValueError(
                "explore.rollouts is 1, but improve.method dpo compares a right and a wrong rollout of a "
                "problem: raise it"
            )
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        pick = self.explore.pick
        if self.improve.method == "dpo" and pick != PickConfig(seed=pick.seed):  # a study sets all seeds
            raise ValueError(
                "explore.pick is set, but improve.method dpo compares one right and one wrong rollout of each problem: "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _rollouts_can_be_learned(self) -> Self:
        """A rollout that is too long would end the run after a whole round."""
        recipe, place = (self.improve.dpo, "improve.dpo") if self.improve.method == "dpo" else (self.sft, "sft")
        most = self.explore.generate.max_tokens
        if self.improve.rounds and recipe.overlong == "error" and most >= recipe.max_length:
            raise ValueError(
                f"explore.generate.max_tokens is {most:,}, but {place}.max_length is {recipe.max_length:,}, which "
                f"leaves no room for the query, and {place}.overlong is error: lower the first, raise the second, or "
                "set overlong to drop"
            )
        return self

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        for place, sampling in (
            ("explore.generate", self.explore.generate),
            ("imitate.write_solutions", self.imitate.write_solutions),
        ):
            if sampling.format not in (None, self.format):
                raise ValueError(
                    f"{place}.format is {sampling.format}, but the policy writes `format`, {self.format}: leave it out"
                )
        return self

    @property
    def needs_perplexity(self) -> bool:
        """Whether the perplexity of rollouts is used."""
        return self.improve.method == "dpo" or self.explore.pick.by == "perplexity"


@dataclass
class Rounds:
    """What all rounds so far explored."""

    explored: list[Ref] = field(default_factory=list)
    perplexities: list[Ref] = field(default_factory=list)
    """The shards of the first round, then those of the second, ..."""
    learned: list[Ref] = field(default_factory=list)
    """What each round's model learned from: rollouts picked, or pairs of thoughts."""
    ended: str = "the number of rounds is reached"
    """Why there was no further round."""


def held_out(config: Still2Config) -> tuple[ImitateStage, MineStage]:
    """Both stages' queries, with the evaluation problems held out."""
    problems = config.evaluate.problems
    own = config.imitate.queries.without(problems).decontaminate
    imitate = config.imitate.model_copy(update={"decontaminate": own})
    return imitate, config.explore.problems.with_references().without(problems)


def preferred(run: Run, config: Still2Config, number: int, problems: Ref, first: Imitated, rounds: Rounds) -> Ref:
    """Pairs of thoughts of all rounds so far; there may be none."""
    return run.do(
        pair_thoughts,
        f"pairs-{number}",
        expected_rows=problems.rows,
        iteration=number,
        explored=rounds.explored,
        perplexities=rounds.perplexities,
        shards=config.explore.shards,
        queries=problems,
        format=config.format,
        model=first.model,
    )


def improved_by_dpo(run: Run, config: DpoRecipe, number: int, pairs: Ref, first: Imitated) -> Ref:
    """The model of a round, trained on pairs of thoughts; it begins with the imitated one, its reference policy."""
    expected = int(4 * pairs.rows * run.estimates.tokens_per_response * config.epochs)
    both: dict[str, Any] = {"policy": first.model, "reference": first.model}
    return run.do(
        train_dpo, f"dpo-{number}", expected_tokens=expected, config=config, pairs=pairs, hosts=run.hosts, **both
    )


def improved_by_sft(run: Run, config: Still2Config, number: int, base: Ref, first: Imitated, picked: list[Ref]) -> Ref:
    """The model of a round, trained on what is imitated and all that was picked so far."""
    tables = [first.longcot, *picked]
    rows = sum(table.rows for table in tables)
    data = run.do(merge_longcot, f"longcot-{number}", expected_rows=rows, tables=tables)
    return trained(run, f"sft-{number}", config.sft, data, base if config.improve.start == "base" else first.model)


@flow(task_runner=TASK_RUNNER, **ALERTS)
def still2(config: Still2Config) -> dict[str, Any] | None:
    """Imitate, explore, self-improve; every round's model is evaluated."""
    with begin(config) as run:
        trains: dict[str, Recipe] = {"config.sft": config.sft}
        trains |= {"config.improve.dpo": config.improve.dpo} if config.improve.method == "dpo" else {}
        base = run.model(config.model, trains=trains, formats=(config.format,))
        imitate, hard = held_out(config)

        # Whatever is wrong with the user's files is found here, before a GPU is used.
        problems = problems_for(run, config.evaluate.benchmark, config.evaluate.problems)
        to_explore = drawn(run, "to-explore", hard.draw, mined(run, hard, "-to-explore"))
        to_imitate, texts = imitation_texts(run, imitate, config.format, base)
        check_lengths(run, imitate, config.sft, texts)
        check_references(run, "explore.problems", to_explore, config.explore.verifier)
        for step, sampling in (("rollouts", config.explore.generate), ("continued", imitate.write_solutions)):
            check_seeds(run, step, sampling.request_seeds, base)
        publish_mining(run, [to_imitate, to_explore])
        grades: dict[str, Grades] = {}
        grades["instruct"] = evaluate_stage(run, config.evaluate, "instruct", problems, base, format="plain")

        first = imitate_stage(run, imitate, config.sft, config.format, texts, base)  # imitate
        grades["imitated"] = evaluate_stage(
            run, config.evaluate, "imitated", problems, first.model, format=config.format
        )

        policy, left, rounds = first.model, to_explore, Rounds()
        for number in range(1, config.improve.rounds + 1):
            if not run.dry and not left.rows:
                rounds.ended = "every problem is solved"
                break
            explored, left_after = explore_round(run, config.explore, number, left, config.format, policy)  # explore
            rounds.explored.append(explored)
            if not run.dry and solved_in(run, explored) < config.improve.min_solved:
                found = outcomes_of(run, explored)
                rounds.ended = f"round {number} solved fewer than {config.improve.min_solved} new problems ({found})"
                break
            given = (run, config.explore, number, explored, to_explore)
            measured = thoughts_measured(*given, config.format, policy) if config.needs_perplexity else []
            rounds.perplexities += measured
            if config.improve.method == "dpo":  # self-improve
                pairs = preferred(run, config, number, to_explore, first, rounds)
                if not run.dry and not pairs.rows:
                    rounds.ended = f"after round {number} no problem has both right and wrong rollouts to compare"
                    break
                rounds.learned.append(pairs)
                policy = improved_by_dpo(run, config.improve.dpo, number, pairs, first)
                show_training(run, policy)
            else:
                rounds.learned.append(picked(*given, first, measured, config.format, config.sft.max_length))
                policy = improved_by_sft(run, config, number, base, first, rounds.learned)
            left, name = left_after, f"round-{number}"
            grades[name] = evaluate_stage(run, config.evaluate, name, problems, policy, format=config.format)

        if run.dry:
            return None
        steps = steps_of(run, problems)
        stages = [stage_summary(run, name, found, steps) for name, found in grades.items()]
        gains = stage_gains(run, grades, anchors=("instruct", "imitated"))
        summary = publish_still2(
            run, config.evaluate.benchmark, stages, gains, policy, first, rounds.explored, rounds.learned, rounds.ended
        )
        publish_report(run.store, summary, still2_content(run.store, summary), key="bolt-still2")
        return summary
