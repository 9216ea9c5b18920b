"""Evaluation: every model on the same held-out problems, sampled and greedy; only solutions are graded."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pandas as pd
from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel, ConfigDict, Field

from flows.bootstrap import curated
from flows.mine import ProblemsConfig, problems_stage
from flows.run import A_MODEL, ALERTS, TASK_RUNNER, Common, Run, begin
from flows.sampling import sample, shards_as_inputs
from infra.manifest import Ref
from infra.steps import plan
from infra.tables import read_table
from tasks.curate_examples import ExamplesConfig
from tasks.generate import GenerateConfig, PromptConfig
from tasks.grade import grade
from tasks.responses import Format
from tasks.summarise import gain, summarise

DECODINGS = ("sampled", "greedy")


class EvaluateStage(BaseModel):
    """How models are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problems: ProblemsConfig = Field(description="Held-out problems with reference answers.")
    generate: GenerateConfig = Field(
        GenerateConfig(samples=4, truncated_limit=0.2), description="Sampling at T=1; greedy is beside it."
    )
    shards: int = Field(4, ge=1, le=400, description="Pieces that the answers are sampled in; each is a cached task.")


class Evaluated(BaseModel):
    """One model to evaluate, under the name of its stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name of the stage; part of the names of its steps.")
    model: str = Field(description=f"The model: {A_MODEL}.")
    format: Format = Field("bolt", description="Format that its answers are read in; `plain` for a ShortCoT model.")
    in_context: bool = Field(False, description="Show it the in-context examples.")


class EvaluateConfig(Common):
    """Parameters of the flow `evaluate`."""

    evaluate: EvaluateStage = Field(description="Problems, and how they are answered.")
    models: tuple[Evaluated, ...] = Field(min_length=1, description="Models to compare, in the order to show them.")
    examples: ExamplesConfig | None = Field(None, description="In-context examples, where a model is shown them.")
    prompt: PromptConfig = Field(PromptConfig(), description="How a model is shown them.")


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
    """Grades of one model's answers, by decoding."""
    grades: Grades = {}
    for decoding in DECODINGS:
        changes = {"format": format} | ({"samples": 1, "temperature": 0.0} if decoding == "greedy" else {})
        draw = config.generate.model_copy(update=changes)
        shards = config.shards if decoding == "sampled" else 1
        answers = sample(
            run, f"answers-{name}-{decoding}", draw, problems, model, shards=shards, prompt=prompt, examples=examples
        )
        what = plan(f"grades-{name}-{decoding}", "tasks.grade", {}, {**shards_as_inputs(answers), "problems": problems})
        grades[decoding] = run.do(grade, what, responses=answers, problems=problems)
    return grades


def stage_summary(run: Run, name: str, grades: Grades) -> dict[str, Any]:
    """One entry of summary.json's `stages`."""
    return summarise(name, graded_frame(run, grades["sampled"]), graded_frame(run, grades["greedy"]))


def stage_gains(run: Run, grades: dict[str, Grades]) -> list[dict[str, Any]]:
    """The paired gain in sampled accuracy of each stage over the one before it, and of the last iteration over SFT."""
    frames = {name: graded_frame(run, found["sampled"]) for name, found in grades.items()}
    pairs = [*pairwise(frames), *((name, [*frames][-1]) for name in frames if name == "sft")]
    return [{"from": a, "to": b, **gain(frames[a], frames[b])} for a, b in dict.fromkeys(pairs) if a != b]


def graded_frame(run: Run, grades: Ref) -> pd.DataFrame:
    return read_table(
        run.store, grades, ["problem_id", "correct", "thought_tokens", "solution_tokens", "truncated", "off_format"]
    ).to_pandas()


@flow(task_runner=TASK_RUNNER, **ALERTS)
def evaluate(config: EvaluateConfig) -> list[dict[str, Any]]:
    """Compare models on held-out problems."""
    with begin(config) as run:
        problems = problems_stage(run, config.evaluate.problems)
        examples = curated(run, config.examples) if config.examples else None
        stages = []
        for each in config.models:
            if each.in_context and examples is None:
                raise ValueError(f"models: {each.name} is to be shown in-context examples, but `examples` is not given")
            grades = evaluate_stage(
                run,
                config.evaluate,
                each.name,
                problems,
                run.model(each.model),
                format=each.format,
                prompt=config.prompt if each.in_context else None,
                examples=examples if each.in_context else None,
            )
            if not run.dry:
                stages.append(stage_summary(run, each.name, grades))
        if stages:
            create_table_artifact(stages, key="evaluation", description="Accuracy and lengths on held-out problems")
        return stages
