"""The problems of a benchmark, for the flows that evaluate."""

from __future__ import annotations

from itertools import islice

from flows.stages.mining import ProblemsConfig, ProblemsDraw, problems_stage
from flows.stages.run import Run
from infra.errors import BadInput
from infra.store.manifest import Ref
from tasks.evaluation.grade import references_of
from tasks.evaluation.problems import MINED, Benchmark, read_problems, step_of
from tasks.queries.sources import Source

LONGEST_ANSWER = 40
"""Words of a reference answer; a longer one is taken for a solution."""


def check_references(run: Run, place: str, problems: Ref, verifier: str) -> None:
    """Refuse references that are whole solutions, which no sampled answer would equal. Raises `BadInput`.

    A verifier of the user's own, `package.module:name`, may take any text, such as unit tests.

    Args:
        place: where the problems are in the flow's parameters.
    """
    if ":" in verifier:
        return
    shown = [row["reference"] or "" for row in islice(run.rows(problems, ["reference"]), 100)]
    solutions = [each for each in shown if "####" in each or len(each.split()) > LONGEST_ANSWER]
    if len(solutions) * 2 > len(shown):
        raise BadInput(
            f"{place}: most references are whole solutions, such as {solutions[0][:80]!r}, and not "
            "answers that a sampled one can be compared with: set `reference` of the sources to a field with "
            "the final answer alone (of GSM8K, what follows ####)"
        )


def refuse_draw(benchmark: Benchmark, problems: ProblemsConfig) -> None:
    """Raise `ValueError` if settings of the draw would be ignored: a named benchmark's problems keep their order."""
    taken = ProblemsDraw(min_difficulty=problems.draw.min_difficulty, limit=problems.draw.limit)
    if benchmark not in MINED and problems.draw != taken:
        raise ValueError(
            f"problems.draw: for {benchmark} only `limit` (the first ones) can be set; remove the other settings"
        )


def problems_for(run: Run, benchmark: Benchmark, problems: ProblemsConfig, references: Source | None = None) -> Ref:
    """The table `problems`, or `problems-BENCHMARK` for a benchmark in its authors' layout.

    Raises `BadInput` if a problem lacks a reference answer, as `grade` would when all are answered; a dry run does not.
    """
    if benchmark in MINED:
        drawn = problems_stage(run, problems)
        if not run.dry:
            references_of(run.store, drawn, benchmark)
        return drawn
    return run.do(
        read_problems,
        step_of("problems", benchmark),
        rehearse=all(source.is_local for source in (*problems.sources, references) if source),
        sources=problems.sources,
        references=references,
        benchmark=benchmark,
        limit=problems.draw.limit,
    )
