"""A benchmark's problems, for any flow that evaluates on it."""

from __future__ import annotations

from flows.mine import ProblemsConfig, problems_stage
from flows.run import Run
from infra.manifest import Ref
from infra.steps import plan
from tasks.read_problems import SHORT_ANSWER, Benchmark, read_problems, step_of
from tasks.sources import Source, digest_of_source
from tasks.subsample import DrawConfig


def refuse_draw(benchmark: Benchmark, problems: ProblemsConfig) -> None:
    """Raise `ValueError` where settings of the draw would be passed over: a benchmark's problems keep their order."""
    taken = DrawConfig(least_difficulty=problems.draw.least_difficulty, limit=problems.draw.limit)
    if benchmark != SHORT_ANSWER and problems.draw != taken:
        raise ValueError(f"problems.draw: of {benchmark}'s problems only `limit` can be set (the first ones)")


def problems_for(run: Run, benchmark: Benchmark, problems: ProblemsConfig, references: Source | None = None) -> Ref:
    """The table `problems`; of a benchmark's own as `problems-BENCHMARK`."""
    if benchmark == SHORT_ANSWER:
        return problems_stage(run, problems)
    digests = {f"source/{number}": digest_of_source(source) for number, source in enumerate(problems.sources)}
    if references is not None:
        digests["references"] = digest_of_source(references)
    rule = {"benchmark": benchmark, "limit": problems.draw.limit}
    return run.do(
        read_problems,
        plan(step_of("problems", benchmark), "tasks.read_problems", rule, {}, **digests),
        rehearse=all(source.is_local for source in (*problems.sources, references) if source),
        sources=problems.sources,
        references=references,
        benchmark=benchmark,
        limit=problems.draw.limit,
    )
