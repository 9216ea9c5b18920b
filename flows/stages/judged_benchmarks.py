"""Benchmarks that are scored by a judge: MT-Bench, Arena-Hard, WildBench. Only solutions are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from cot_formats.responses import Format
from flows.stages.mining import ProblemsConfig
from flows.stages.problems import refuse_draw
from flows.stages.run import Run
from flows.stages.sampling import sample
from infra.steps.step import Step
from infra.store.manifest import Ref
from tasks.evaluation.arenahard import judge_arenahard
from tasks.evaluation.baselines import read_baselines
from tasks.evaluation.mtbench import judge_mtbench
from tasks.evaluation.problems import Judged
from tasks.evaluation.second_turn import second_turn
from tasks.evaluation.style_counts import count_styles
from tasks.evaluation.verdicts import Judge
from tasks.evaluation.wildbench import judge_wildbench
from tasks.queries.sources import Source
from tasks.responses.generate import GenerateConfig
from tasks.responses.prompt import PromptConfig

TOKENS_A_VERDICT = 300  # that a dry run assumes a judge writes

STEPS: Mapping[Judged, Step] = {
    "mt-bench": judge_mtbench,
    "arena-hard-v0.1": judge_arenahard,
    "arena-hard-v2.0": judge_arenahard,
    "wildbench": judge_wildbench,
}
"""The step that asks the judge, by benchmark."""


class JudgedSampling(GenerateConfig):
    """How answers to a judged benchmark are sampled: one per question, greedily."""

    samples: int = Field(1, ge=1, description="Number of answers per question; only one can be judged.")
    temperature: float = Field(0.0, ge=0, description="Sampling temperature; 0 takes the most likely token.")


class JudgedStage(BaseModel, frozen=True, extra="forbid"):
    """A benchmark that is scored by a judge."""

    benchmark: Judged = Field(description="Which benchmark.")
    problems: ProblemsConfig = Field(
        description="Its questions, in the authors' layout. Of `draw`, only `limit` can be set."
    )
    references: Source | None = Field(
        None, description="MT-Bench: reference answers for maths, reasoning and coding (FastChat's gpt-4.jsonl)."
    )
    baselines: tuple[Source, ...] = Field(
        (),
        description="Answers to compare with, in the authors' layout. Arena-Hard: the baseline model's (v2.0: both); "
        "WildBench: those that WB-Reward compares with; if omitted, only WB-Score is computed.",
    )
    generate: JudgedSampling = Field(JudgedSampling(), description="How answers are sampled, one per question.")
    judge: Judge = Field(description="The judge, and how it is asked.")
    thoughts_in_history: bool = Field(
        False,
        description="MT-Bench, second turn: keep the thoughts of the first answer in the model's history. The judge "
        "never sees thoughts.",
    )
    length_margin: int | None = Field(
        500,
        ge=0,
        description="WildBench, WB-Reward: a slight win counts as a tie if the winner is longer by more than this many "
        "characters (the authors' boards: 500, and none).",
    )
    shards: int = Field(
        4, ge=1, le=400, description="Number of shards that the problems are split into; each shard is a cached task."
    )

    @model_validator(mode="after")
    def _as_its_authors_do(self) -> Self:
        refuse_draw(self.benchmark, self.problems)
        if self.generate.samples != 1:
            raise ValueError(f"{self.benchmark}: one answer per question is judged: set generate.samples to 1")
        if self.references and self.benchmark != "mt-bench":
            raise ValueError(f"{self.benchmark} has no reference answers: omit `references`")
        if self.benchmark.startswith("arena-hard") and not self.baselines:
            raise ValueError(f"{self.benchmark} compares with the answers of a baseline model: set `baselines`")
        if self.baselines and self.benchmark == "mt-bench":
            raise ValueError("mt-bench rates single answers: omit `baselines`")
        return self


@dataclass(frozen=True)
class Answers:
    """A model's answers to a judged benchmark."""

    name: str
    turns: tuple[Sequence[Ref], ...]
    """The responses of each turn, a table per shard."""
    styles: Ref | None
    """Arena-Hard: the style counts that style control needs."""


def baselines_stage(run: Run, config: JudgedStage, problems: Ref) -> Ref | None:
    """The baseline answers to compare with, one per problem; None if the benchmark has none."""
    if not config.baselines:
        return None
    return run.do(
        read_baselines,
        f"baselines-{config.benchmark}",
        expected_rows=problems.rows,
        rehearse=all(source.is_local for source in config.baselines),
        sources=config.baselines,
        problems=problems,
        benchmark=config.benchmark,
    )


def answers_stage(
    run: Run,
    config: JudgedStage,
    name: str,
    problems: Ref,
    model: Ref,
    format: Format,
    baselines: Ref | None,
    prompt: PromptConfig | None = None,
    examples: Ref | None = None,
) -> Answers:
    """One model's answers; those to MT-Bench's second turns are sampled after the first."""
    draw = config.generate.model_copy(update={"format": format})
    step = f"answers-{config.benchmark}-{name}"
    asked = partial(sample, run, model=model, shards=config.shards, prompt=prompt, examples=examples)
    turns = [asked(step, draw, problems)]
    if config.benchmark == "mt-bench":
        later = run.do(
            second_turn,
            f"problems-{config.benchmark}-{name}",
            expected_rows=problems.rows,
            problems=problems,
            responses=turns[0],
            thoughts_in_history=config.thoughts_in_history,
        )
        turns.append(asked(f"{step}-2", draw, later))
    counted = None
    if baselines and config.benchmark.startswith("arena-hard"):
        counted = run.do(
            count_styles,
            f"styles-{config.benchmark}-{name}",
            expected_rows=problems.rows,
            responses=turns[0],
            baselines=baselines,
            model=model,
        )
    return Answers(name, tuple(turns), counted)


def verdicts_stage(
    run: Run, config: JudgedStage, judge_model: Ref | None, problems: Ref, baselines: Ref | None, answers: Answers
) -> Ref:
    """The judge's verdicts on one model's answers. `judge_model` is a judge that is served here, if it is."""
    compared: dict[str, Any] = {} if config.benchmark == "mt-bench" else {"baselines": baselines}
    if config.benchmark.startswith("arena-hard"):
        compared["version"] = config.benchmark.removeprefix("arena-hard-")
    return run.do(
        STEPS[config.benchmark],
        f"verdicts-{config.benchmark}-{answers.name}",
        expected_tokens=2 * problems.rows * TOKENS_A_VERDICT,
        expected_rows=2 * problems.rows,
        judge=config.judge,
        judge_model=judge_model,
        problems=problems,
        turns=answers.turns,
        **compared,
    )
