"""The results of the flow `evaluate`: evaluation.json, and tables as Prefect artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.stages.judged_benchmarks import Answers, JudgedStage
from flows.stages.run import Run
from flows.stages.summary import run_folder
from infra.store.manifest import Ref, expect
from infra.store.tables import read_rows, read_table
from infra.text.markdown import as_text, markdown_table
from tasks.evaluation.outcomes import (
    Outcome,
    outcome_of_grades,
    outcome_of_verdicts,
    paired_differences,
    style_controlled_rows,
)
from tasks.evaluation.problems import Benchmark, Judged, Verifiable, as_problem, topic_of

TABLES = {
    "results": "Score with its 95 % interval (Arena-Hard v2.0: 90 %), lengths in tokens, shares of answers",
    "differences": "Paired differences on the same problems, with their 95 % intervals",
    "style control": "Arena-Hard with style controlled, %",
    "judging": "What the judge was asked, and what it cost",
    "figures": "Further figures, as the authors publish them",
}


@dataclass(frozen=True)
class JudgedAnswers:
    """One model's answers to a judged benchmark, and the verdicts on them."""

    stage: JudgedStage
    answers: Answers
    verdicts: Ref
    baselines: Ref | None


def publish_evaluation(
    run: Run,
    problems: Mapping[Benchmark, Ref],
    grades: Mapping[tuple[Verifiable, str], Mapping[str, Ref]],
    judged: Mapping[tuple[Judged, str], JudgedAnswers],
) -> dict[str, Any]:
    """Write `runs/RUN/evaluation.json`, and its tables as artifacts. Returns its content and its path."""
    outcomes = [
        *(graded_outcome(run, key, found, problems[key[0]]) for key, found in grades.items()),
        *(judged_outcome(run, key, found, problems[key[0]]) for key, found in judged.items()),
    ]
    outcomes.sort(key=lambda each: list(problems).index(each.row["benchmark"]))  # stable: models keep their order
    of_benchmark = [list(found) for _, found in groupby(outcomes, key=lambda each: each.row["benchmark"])]
    tables = {
        "results": [each.row for each in outcomes],
        "differences": [row for found in of_benchmark for row in paired_differences(found)],
        "style control": [row for found in of_benchmark for row in style_controlled_rows(found)],
        "judging": [
            {"benchmark": key[0], "model": key[1], **expect(run.store, each.verdicts).counts}
            for key, each in judged.items()
        ],
        "figures": [
            {"benchmark": each.row["benchmark"], "model": each.row["model"], "figure": name, "value": value}
            for each in outcomes
            for name, value in each.figures.items()
        ],
    }
    name = run_folder()
    path = f"runs/{name}/evaluation.json"
    run.store.write_bytes(path, json.dumps({"run": name, **tables}, indent=1).encode())
    for title, rows in tables.items():
        if rows:
            key = f"evaluation-{title}".replace(" ", "-").removesuffix("-results")
            cells = [{column: as_text(cell) for column, cell in row.items()} for row in rows]
            create_table_artifact(cells, key=key, description=TABLES[title])
    printed = {title: [shown(row) for row in rows] for title, rows in tables.items() if rows and title != "figures"}
    parts = [
        f"## {TABLES[title]}\n\n"
        + markdown_table([{column: as_text(cell) for column, cell in row.items()} for row in rows])
        for title, rows in printed.items()
    ]
    create_markdown_artifact("\n\n".join(["# Evaluation", *parts]), key="evaluation-summary")
    for title, rows in printed.items():
        print(f"\n{TABLES[title]}\n\n{markdown_table(rows)}")
    return {"run": name, **tables, "path": run.store.uri(path)}


def graded_outcome(run: Run, key: tuple[Verifiable, str], grades: Mapping[str, Ref], problems: Ref) -> Outcome:
    """The figures of one model on a benchmark that a program grades."""
    sampled, greedy = (frame(run, [grades[decoding]]) for decoding in ("sampled", "greedy"))
    categories = {row["query_id"]: topic_of(row) for row in read_rows(run.store, problems)}
    return outcome_of_grades(*key, sampled, greedy, categories)


def judged_outcome(run: Run, key: tuple[Judged, str], judged: JudgedAnswers, problems: Ref) -> Outcome:
    """The figures of one model on a judged benchmark."""
    answers, baselines = judged.answers, judged.baselines
    return outcome_of_verdicts(
        *key,
        frame(run, [judged.verdicts]),
        frame(run, [shard for turn in answers.turns for shard in turn]),
        {row["query_id"]: as_problem(row) for row in read_rows(run.store, problems)},
        styles=frame(run, [answers.styles]) if answers.styles else None,
        baselines={row["query_id"]: row["text"] for row in read_rows(run.store, baselines)} if baselines else {},
        margin=judged.stage.length_margin,
    )


def frame(run: Run, tables: Sequence[Ref]) -> pd.DataFrame:
    """The rows of all tables in one frame."""
    return pd.concat([read_table(run.store, each).to_pandas() for each in tables], ignore_index=True)


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as text: numbers with three decimals, missing values empty."""
    return {
        name: "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
        for name, value in row.items()
    }
