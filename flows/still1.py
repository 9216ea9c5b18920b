"""`python -m flows still1/nano`: policy and reward model improve each other (STILL-1, arXiv 2411.11694).

A policy learns to solve questions step by step. In rounds, a reward model learns to tell its right solutions from its
wrong ones, and the policy is trained on pairs that the reward model chose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Self

from prefect import flow
from pydantic import BaseModel, Field, model_validator

from flows.bootstrap import BootstrapStage, bootstrap_stage, curated_for
from flows.evaluate import EvaluateStage, Grades, evaluate_stage, stage_gains, stage_summary, steps_of
from flows.stages.common import A_MODEL, ALERTS, Trains
from flows.stages.mining import MineStage, ProblemsConfig, drawn, mined, problems_stage, publish_mining
from flows.stages.mutual import (
    MutualStage,
    Round,
    Unfinished,
    accuracy_of,
    fine_tuned,
    improve_round,
    solutions,
)
from flows.stages.problems import check_references, problems_for
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import check_seeds
from flows.stages.searching import SearchStage, all_graded, publish_trees, search_stage, unfit
from flows.stages.still1_summary import publish_still1
from flows.stages.summary import publish_report
from infra.errors import BadInput
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.text.chat import load_tokenizer
from infra.training.config import Recipe, SftRecipe
from tasks.evaluation.grade import references_of
from tasks.evaluation.problems import MINED
from tasks.mutual.adapt import SolvedSource, StepFormat, adapt_solutions, read_solutions
from tasks.mutual.judge import answer_tokens
from tasks.queries.clean import CleanConfig, cleaned
from tasks.queries.decontaminate import DecontaminateConfig
from tasks.queries.draw import DrawConfig
from tasks.queries.identity import query_id
from tasks.queries.sources import problems_of
from tasks.report.still1_page import still1_content


class GivenSolutions(BaseModel, frozen=True, extra="forbid"):
    """Step-by-step solutions that somebody else wrote."""

    sources: tuple[SolvedSource, ...] = Field(
        min_length=1, description="Files and data sets of queries with solutions."
    )
    clean: CleanConfig = Field(CleanConfig(), description="Which queries are usable: length, language, duplicates.")
    decontaminate: DecontaminateConfig = Field(
        DecontaminateConfig(), description="Evaluation sets, and which overlap with them drops a query."
    )
    draw: DrawConfig = Field(DrawConfig(), description="Which of the queries are used.")

    @property
    def queries(self) -> MineStage:
        """How the queries of the solutions are mined."""
        return MineStage(sources=self.sources, clean=self.clean, decontaminate=self.decontaminate, draw=self.draw)


class AdaptStage(BaseModel, frozen=True, extra="forbid"):
    """Format adaptation: what the policy is first fine-tuned on. Set one of the two."""

    given: GivenSolutions | None = Field(None, description="Solutions that somebody else wrote.")
    sampled: BootstrapStage | None = Field(
        None,
        description="Solutions that the model itself samples with examples in its prompt, as in BOLT's stage 1. Only "
        "the solutions are learned, without thoughts.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.given is None) == (self.sampled is None):
            raise ValueError("adapt: set `given` or `sampled`, and only one of them")
        if self.sampled and not (self.sampled.score.verified_weight and self.sampled.select.drop_wrong):
            raise ValueError(
                "adapt.sampled: only right solutions are kept: set score.verified_weight above 0, and "
                "select.drop_wrong to true"
            )
        return self


class SearchPolicies(SearchStage, frozen=True):
    """Search with every policy, guided by the last round's reward model."""

    problems: ProblemsConfig = Field(description="Held-out problems to search.")


class Still1Config(Trains):
    """Parameters of the flow `still1`. STILL-1 publishes few figures: where it is silent, the defaults are BOLT's or
    this project's choice."""

    model: str = Field(description=f"Instruct model that is trained: {A_MODEL}.")
    steps: StepFormat = Field(StepFormat(), description="How a solution is written step by step.")
    adapt: AdaptStage = Field(description="Format adaptation.")
    sft: SftRecipe = Field(SftRecipe(), description="How the policy is fine-tuned on solutions in steps.")
    improve: MutualStage = Field(description="Mutual improvement of policy and reward model.")
    evaluate: EvaluateStage = Field(description="Held-out evaluation of the instruct model and of every policy.")
    search: SearchPolicies | None = Field(
        None,
        description="Search with the instruct model and every policy, guided by the last reward model. Null: none.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        tested = {source.place for source in self.evaluate.problems.sources}
        if shared := [each.place for each in self.improve.held_out.sources if each.place in tested]:
            raise ValueError(
                f"improve.held_out: {shared[0]} is also in evaluate.problems, but the held-out questions decide when "
                "the rounds end: use other ones"
            )
        for place, search in (("improve.search", self.improve.search), ("search", self.search)):
            elsewhere = self.cluster is not None
            for reason in unfit(self.serving, search.sampling, scores=True, elsewhere=elsewhere) if search else ():
                raise ValueError(f"{place}: {reason}")
            if search and not self.improve.rounds:
                raise ValueError(f"{place} is set, but without rounds there is no reward model: leave it out")
        return self

    @property
    def trainings(self) -> dict[str, Recipe]:
        """How the model is trained, by parameter."""
        rounds: dict[str, Recipe] = {
            "config.improve.reward": self.improve.reward,
            "config.improve.dpo": self.improve.dpo,
        }
        if self.improve.search and self.improve.search.learn != "pairs":
            rounds["config.improve.search.sft"] = self.improve.search.sft
        return {"config.sft": self.sft, **(rounds if self.improve.rounds else {})}


def held_out(config: Still1Config) -> tuple[AdaptStage, MutualStage]:
    """Both stages, with the evaluation problems and the held-out questions left out of their queries."""
    tests = [config.evaluate.problems, config.improve.held_out, *([config.search.problems] if config.search else [])]
    adapt, improve = config.adapt, config.improve
    for problems in tests:
        improve = improve.model_copy(update={"queries": improve.queries.with_references().without(problems)})
        if adapt.given:
            own = adapt.given.queries.without(problems).decontaminate
            adapt = adapt.model_copy(update={"given": adapt.given.model_copy(update={"decontaminate": own})})
        if adapt.sampled:
            queries = adapt.sampled.queries.without(problems)
            adapt = adapt.model_copy(update={"sampled": adapt.sampled.model_copy(update={"queries": queries})})
    return adapt, improve


@dataclass
class Adaptation:
    """What format adaptation begins with, known before a GPU is used."""

    queries: Ref
    examples: Ref | None
    given: Ref | None
    """Solutions that somebody else wrote."""


def adaptation(run: Run, config: AdaptStage, steps: StepFormat, model: Ref) -> Adaptation:
    """The queries of format adaptation, and the given solutions or the in-context examples."""
    if config.given:
        own = config.given.queries
        queries = drawn(run, "queries", own.draw, mined(run, own, "-adapt"))
        found: dict[str, Any] = {"format": steps, "sources": config.given.sources, "queries": queries}
        readable = all(source.is_local for source in config.given.sources)
        given = run.do(read_solutions, "adapted", expected_rows=queries.rows, rehearse=readable, **found)
        return Adaptation(queries, None, given)
    assert config.sampled is not None
    stage = config.sampled.queries.with_references()
    examples = curated_for(run, config.sampled, model, run.servers.options("policy").max_model_len)
    return Adaptation(drawn(run, "queries", stage.draw, mined(run, stage, "-adapt")), examples, None)


def adaptation_data(run: Run, config: AdaptStage, steps: StepFormat, model: Ref, begun: Adaptation) -> Ref:
    """The solutions in steps that the policy is first fine-tuned on: the table `adapted`."""
    if begun.given:
        return begun.given
    assert config.sampled is not None
    assert begun.examples is not None
    longcot = bootstrap_stage(run, config.sampled, begun.examples, begun.queries, model, None)
    return run.do(adapt_solutions, "adapted", expected_rows=longcot.rows, format=steps, longcot=longcot)


def check_inputs(
    run: Run,
    config: Still1Config,
    problems: Ref,
    held: Ref,
    searched: Ref | None,
    asked: Collection[Ref],
    model: Ref,
) -> None:
    """Refuse what a later step would end the run for, before a GPU is used.

    Raises:
        BadInput: a held-out question has no reference or is one of the evaluation's problems; references are whole
            solutions; the reward model's question lacks a field, or its answers cannot be told apart; or vLLM for CPU
            is to give requests seeds of their own.
    """
    improve = config.improve
    improve.judge.question("", "")
    sampled = config.adapt.sampled.generate if config.adapt.sampled else improve.generate
    for step, sampling in (("responses", sampled), ("responses-round-1", improve.generate)):
        check_seeds(run, step, sampling.request_seeds, model)
    for place, search in (("improve.search", improve.search), ("search", config.search)):
        if search:
            check_seeds(run, "search", search.sampling.request_seeds, model, f"{place}.sampling")
    for place, table in (("improve.held_out", held), *(("improve.queries", each) for each in asked)):
        check_references(run, place, table, improve.verifier)
    if run.dry:
        return
    references_of(run.store, held, "short-answer")
    if config.search and searched and all_graded(run, searched):
        references_of(run.store, searched, config.search.verifier)
    refuse_evaluated(run.rows(held, ["query_id", "query"]), evaluated_ids(run, config.evaluate, problems))
    answer_tokens(load_tokenizer(fetch_model(run.store, model, run.servers.work_dir)), improve.judge)


def evaluated_ids(run: Run, config: EvaluateStage, problems: Ref) -> set[str]:
    """What the ids of the evaluation's problems are among mined queries, by their texts alone: a named benchmark's own
    table has its authors' ids, and an instruction after each text."""
    if config.benchmark in MINED:
        return {row["query_id"] for row in run.rows(problems, ["query_id"])}
    read = chain.from_iterable(problems_of(source) for source in config.problems.sources)
    return {query_id(cleaned(each["query"])) for each in islice(read, config.problems.draw.limit)}


def refuse_evaluated(held_out: Iterable[dict[str, Any]], evaluated: Collection[str]) -> None:
    """Raise `BadInput` if held-out questions are problems of the evaluation, by their ids."""
    if shared := [row["query"] for row in held_out if row["query_id"] in evaluated]:
        raise BadInput(
            f"improve.held_out: {len(shared)} questions are also in evaluate.problems, such as {shared[0][:80]!r}, "
            "but the held-out questions decide when the rounds end: use other ones"
        )


def questions(run: Run, config: MutualStage) -> tuple[dict[int, Ref], Ref]:
    """The questions of every round, by its number, and the held-out ones."""
    rounds = range(config.rounds, 0, -1)  # the last draws first: an error then says how many all rounds need
    found = mined(run, config.queries) if rounds else None
    drawn_for = {
        number: drawn(run, f"queries-round-{number}", config.draw_of(number), found) for number in rounds if found
    }
    return drawn_for, problems_stage(run, config.held_out, "held-out")


def improved(
    run: Run,
    config: Still1Config,
    improve: MutualStage,
    asked: Mapping[int, Ref],
    held: Ref,
    first: Ref,
    problems: Ref,
    grades: dict[str, Grades],
) -> tuple[list[Round], str]:
    """All rounds of mutual improvement that were finished, and why there was no further one.

    Args:
        asked: the questions of every round, by its number.
        held: the held-out questions.
        first: the adapted policy P_0.
        problems: those of the evaluation.
        grades: each round's are added.

    Raises:
        BadInput: there is nothing to learn from in the first round. Later that ends the rounds.
    """
    rounds, ended = list[Round](), "the number of rounds is reached"
    if not asked:
        return rounds, ended
    held_solutions = solutions(run, improve, "held-out-0", held, first, 0)
    before = 0.0 if run.dry else accuracy_of(run, held_solutions[1])
    policy, reward_model = first, None
    for number, queries in sorted(asked.items()):
        earlier = [each.chosen for each in rounds]
        given = (number, queries, held, first, policy, reward_model, earlier, held_solutions)
        found = improve_round(run, improve, config.steps, *given)
        if isinstance(found, Unfinished):
            if not rounds:
                raise BadInput(f"{found.why}: {found.remedy}")
            return rounds, found.why
        rounds.append(found)
        policy, reward_model = found.policy, found.reward_model
        name = f"round-{number}"
        grades[name] = evaluate_stage(run, config.evaluate, name, problems, policy, format="plain")
        _, right = solutions(run, improve, f"held-out-{number}", held, policy, 0)
        if run.dry:
            continue
        found.accuracy = accuracy_of(run, right)
        if improve.min_gain is not None and found.accuracy - before < improve.min_gain:
            return rounds, f"round {number} gained {found.accuracy - before:+.3f} on the held-out questions"
        before = found.accuracy
    return rounds, ended


@flow(task_runner=TASK_RUNNER, **ALERTS)
def still1(config: Still1Config) -> dict[str, Any] | None:
    """Adapt the policy to the step format, then let policy and reward model improve each other."""
    with begin(config) as run:
        written = (config.adapt.sampled.generate.format,) if config.adapt.sampled else ()
        instruct = run.model(config.model, trains=config.trainings, formats=written)
        adapt, improve = held_out(config)

        # Whatever is wrong with the user's files is found here, before a GPU is used.
        problems = problems_for(run, config.evaluate.benchmark, config.evaluate.problems)
        asked, held = questions(run, improve)
        searched = problems_stage(run, config.search.problems, "searched") if config.search else None
        begun = adaptation(run, adapt, config.steps, instruct)
        check_inputs(run, config, problems, held, searched, asked.values(), instruct)
        publish_mining(run, [begun.queries, *asked.values()])
        grades: dict[str, Grades] = {}
        grades["instruct"] = evaluate_stage(run, config.evaluate, "instruct", problems, instruct, format="plain")

        data = adaptation_data(run, adapt, config.steps, instruct, begun)  # format adaptation
        first = fine_tuned(run, "sft-adapted", config.sft, data, instruct)
        grades["adapted"] = evaluate_stage(run, config.evaluate, "adapted", problems, first, format="plain")

        rounds, ended = improved(run, config, improve, asked, held, first, problems, grades)  # mutual improvement
        policy = rounds[-1].policy if rounds else first

        searches: list[dict[str, Any]] = []
        if config.search and searched:  # search, guided by the last reward model
            policies = {"instruct": instruct, "adapted": first}
            policies |= {f"round-{number}": each.policy for number, each in enumerate(rounds, 1)}
            for name, each in policies.items():
                how: dict[str, Any] = {"format": config.steps, "judge": improve.judge, "name": name}
                own, trees = search_stage(run, config.search, searched, each, rounds[-1].reward_model, **how)
                searches += own

        if run.dry:
            return None
        steps = steps_of(run, problems)
        stages = [stage_summary(run, name, found, steps) for name, found in grades.items()]
        gains = stage_gains(run, grades, anchors=("instruct", "adapted"))
        summary = publish_still1(run, config.evaluate.benchmark, stages, gains, policy, data, rounds, ended, searches)
        publish_report(run.store, summary, still1_content(run.store, summary), key="bolt-still1")
        if config.search and searched:
            publish_trees(run, summary["run"], config.search, trees, searched)
        return summary
