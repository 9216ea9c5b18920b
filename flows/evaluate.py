"""`python -m flows evaluate/nano`: compare any models on any benchmarks.

All models answer a benchmark with the same sampling settings. Only solutions are graded or judged, never thoughts.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Self

import pandas as pd
from prefect import flow
from pydantic import BaseModel, Field, model_validator

from cot_formats.responses import Format
from flows.bootstrap import curated
from flows.stages.common import A_MODEL, ALERTS, Common
from flows.stages.comparison import JudgedAnswers, publish_evaluation
from flows.stages.judged_benchmarks import Answers, JudgedStage, answers_stage, baselines_stage, verdicts_stage
from flows.stages.mining import ProblemsConfig
from flows.stages.problems import problems_for, refuse_draw
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import sample
from infra.store.manifest import Ref
from infra.store.tables import read_table
from tasks.evaluation.by_steps import by_steps
from tasks.evaluation.grade import grade
from tasks.evaluation.problems import SHORT_ANSWER, Judged, Verifiable, step_of
from tasks.evaluation.summarise import gain, summarise
from tasks.examples.read import ExamplesConfig
from tasks.responses.generate import GenerateConfig
from tasks.responses.prompt import PromptConfig

DECODINGS = ("sampled", "greedy")


class GradedSampling(GenerateConfig):
    """How answers to a benchmark are sampled that a program grades."""

    samples: int = Field(4, ge=1, description="Number of answers sampled per problem.")
    max_truncated_share: float = Field(
        0.2, ge=0, le=1, description="Largest share of answers cut at max_tokens; the step fails if there are more."
    )


class EvaluateStage(BaseModel, frozen=True, extra="forbid"):
    """A benchmark whose answers are graded by a program."""

    benchmark: Verifiable = Field(
        SHORT_ANSWER,
        description="Which benchmark; `short-answer` (`answer : VALUE .`) and `everyday` (a number or a day of the "
        "week, in any wording) take any queries that have a `reference` each.",
    )
    problems: ProblemsConfig = Field(
        description="Held-out problems with reference answers. A named benchmark's are in its authors' layout, and "
        "`draw.limit` (the first ones) is the only setting of `draw` that it takes."
    )
    generate: GradedSampling = Field(
        GradedSampling(), description="How answers are sampled (T=1); a greedy answer is always added."
    )
    shards: int = Field(
        4, ge=1, le=400, description="Number of shards that the problems are split into; each shard is a cached task."
    )

    @model_validator(mode="after")
    def _first_ones(self) -> Self:
        refuse_draw(self.benchmark, self.problems)
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.generate.format != GradedSampling().format:
            raise ValueError(
                f"generate.format is {self.generate.format}, but each model answers in its own format: leave it out"
            )
        return self


class Evaluated(BaseModel, frozen=True, extra="forbid"):
    """One model to evaluate."""

    name: str = Field(pattern=r"^[\w.-]+$", description="Name of the model in tables and step names.")
    model: str = Field(description=f"The model: {A_MODEL}.")
    format: Format = Field("bolt", description="Format of its answers; `plain` for a ShortCoT model.")
    in_context: bool = Field(False, description="Whether its prompts contain the in-context examples.")


class EvaluateConfig(Common):
    """Parameters of the flow `evaluate`."""

    models: tuple[Evaluated, ...] = Field(min_length=1, description="Models to compare, in the order of the tables.")
    benchmarks: tuple[Annotated[EvaluateStage | JudgedStage, Field(discriminator="benchmark")], ...] = Field(
        min_length=1, description="The benchmarks, each with its problems and how answers are sampled."
    )
    examples: ExamplesConfig | None = Field(None, description="In-context examples, for models with `in_context`.")
    prompt: PromptConfig = Field(PromptConfig(), description="How in-context examples and a query become a prompt.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [each.name for each in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"models: {names}: each name must be unique")
        kinds = [each.benchmark for each in self.benchmarks]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"benchmarks: {kinds}: each benchmark may be listed once")
        shown = [each.name for each in self.models if each.in_context]
        if shown and self.examples is None:
            raise ValueError(f"models: {shown[0]} has in_context set, but `examples` is not given: set it")
        return self


Grades = dict[str, Ref]


def evaluate_stage(
    run: Run,
    config: EvaluateStage,
    name: str,
    problems: Ref,
    model: Ref,
    *,
    format: Format = "bolt",
    prompt: PromptConfig | None = None,
    examples: Ref | None = None,
) -> Grades:
    """Sample one model's answers and grade them, once per decoding: `sampled` and `greedy`."""
    grades: Grades = {}
    for decoding in DECODINGS:
        draw = config.generate.model_copy(update={"format": format})
        if decoding == "greedy":  # as many sequences at a time as when sampled
            in_flight = draw.in_flight * draw.samples
            draw = draw.model_copy(update={"samples": 1, "temperature": 0.0, "in_flight": in_flight})
        shards = config.shards if decoding == "sampled" else 1
        step = step_of("answers", config.benchmark, name, decoding)
        answers = sample(run, step, draw, problems, model, shards=shards, prompt=prompt, examples=examples)
        step = step_of("grades", config.benchmark, name, decoding)
        grades[decoding] = run.do(grade, step, responses=answers, problems=problems, benchmark=config.benchmark)
    return grades


def stage_summary(run: Run, name: str, grades: Grades, steps: Mapping[str, int]) -> dict[str, Any]:
    """A stage's figures, one entry of `stages` in summary.json. `steps`: as `steps_of`."""
    sampled, greedy = (graded_frame(run, grades[decoding]) for decoding in DECODINGS)
    return {**summarise(name, sampled, greedy), "by_steps": by_steps(sampled, steps)}


def steps_of(run: Run, problems: Ref) -> dict[str, int]:
    """The number of steps of each mined problem whose source states it, by the problem's id."""
    rows = read_table(run.store, problems).to_pylist()
    return {row["query_id"]: row["step_count"] for row in rows if row.get("step_count") is not None}


def stage_gains(
    run: Run, grades: dict[str, Grades], anchors: tuple[str, str] = ("instruct", "sft")
) -> list[dict[str, Any]]:
    """The paired gain in sampled accuracy of each stage over the one before it, of the second of `anchors` over the
    first, and of the last stage over both."""
    frames = {name: graded_frame(run, found["sampled"]) for name, found in grades.items()}
    last = [*frames][-1]
    first, second = anchors
    pairs = [*pairwise(frames), anchors, (second, last), (first, last)]
    return [
        {"from": a, "to": b, **gain(frames[a], frames[b])}
        for a, b in dict.fromkeys(pairs)
        if a != b and {a, b} <= set(frames)
    ]


def graded_frame(run: Run, grades: Ref) -> pd.DataFrame:
    """The columns of a table of grades that the summary uses."""
    return read_table(
        run.store, grades, ["problem_id", "correct", "thought_tokens", "solution_tokens", "truncated", "malformed"]
    ).to_pandas()


@flow(task_runner=TASK_RUNNER, **ALERTS)
def evaluate(config: EvaluateConfig) -> dict[str, Any] | None:
    """Compare models on benchmarks, graded by programs or by a judge."""
    with begin(config) as run:
        # Whatever is wrong with the user's files is found here, before a GPU is used.
        problems = {
            each.benchmark: problems_for(
                run, each.benchmark, each.problems, each.references if isinstance(each, JudgedStage) else None
            )
            for each in config.benchmarks
        }
        judged = {each.benchmark: each for each in config.benchmarks if isinstance(each, JudgedStage)}
        baselines = {name: baselines_stage(run, each, problems[name]) for name, each in judged.items()}
        models = {each.name: run.model(each.model, formats=(each.format,)) for each in config.models}
        judges = {name: run.model(each.judge.model) if each.judge.model else None for name, each in judged.items()}
        examples = curated(run, config.examples) if config.examples else None
        grades: dict[tuple[Verifiable, str], Grades] = {}
        answers: dict[tuple[Judged, str], Answers] = {}

        # A model answers all benchmarks before the next model, so that its server is started once.
        for each in config.models:
            model = models[each.name]
            prompt, shown = (config.prompt, examples) if each.in_context else (None, None)
            for stage in config.benchmarks:
                asked = problems[stage.benchmark]
                if isinstance(stage, JudgedStage):
                    met = baselines[stage.benchmark]
                    answers[stage.benchmark, each.name] = answers_stage(
                        run, stage, each.name, asked, model, each.format, met, prompt, shown
                    )
                else:
                    grades[stage.benchmark, each.name] = evaluate_stage(
                        run, stage, each.name, asked, model, format=each.format, prompt=prompt, examples=shown
                    )

        # The judge comes last, since a judge that is served here takes the devices of the models.
        verdicts = {}
        for (kind, name), given in answers.items():
            found = verdicts_stage(run, judged[kind], judges[kind], problems[kind], baselines[kind], given)
            verdicts[kind, name] = JudgedAnswers(judged[kind], given, found, baselines[kind])
        return None if run.dry else publish_evaluation(run, problems, grades, verdicts)
