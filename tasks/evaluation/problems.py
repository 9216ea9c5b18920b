"""Reading a benchmark's problems from files or data sets in its authors' layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

from evals import arenahard, math500, math_level5, mtbench, wildbench, zebralogic
from evals.problem import Problem
from evals.style_control import Version
from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import PROBLEMS
from infra.store.store import Store
from infra.store.tables import batched, write_table
from tasks.queries.fields import encodable
from tasks.queries.sources import Source, records

Verifiable = Literal["short-answer", "everyday", "math500", "math-level5", "zebralogic"]
Judged = Literal["mt-bench", "arena-hard-v0.1", "arena-hard-v2.0", "wildbench"]
Benchmark = Verifiable | Judged
SHORT_ANSWER: Verifiable = "short-answer"
MINED: tuple[Benchmark, ...] = (SHORT_ANSWER, "everyday")
"""Benchmarks of any queries with references; they are mined, not read here."""


def _arenahard(version: Version, record: Mapping[str, Any], row: int) -> Problem:
    problem = arenahard.read(record, row)
    if arenahard.version_of(problem.category) != version:
        raise ValueError(f"row {row}: field category: expected one of {version}'s, found {problem.category!r}")
    return problem


def step_of(kind: str, benchmark: Benchmark, *more: str) -> str:
    """The name of a step that reads, answers or grades a benchmark's problems; it omits a benchmark that is `MINED`."""
    return "-".join([kind, *([] if benchmark in MINED else [benchmark]), *more])


READ: Mapping[Benchmark, Callable[[Mapping[str, Any], int], Problem]] = {
    "math500": math500.read,
    "math-level5": math_level5.read,
    "zebralogic": zebralogic.read,
    "mt-bench": mtbench.read,
    "arena-hard-v0.1": partial(_arenahard, "v0.1"),
    "arena-hard-v2.0": partial(_arenahard, "v2.0"),
    "wildbench": wildbench.read,
}


def problems_of(benchmark: Benchmark, sources: Sequence[Source]) -> Iterator[Problem]:
    """The problems of all sources, in order.

    Raises:
        BadInput: a record is not in the authors' layout, or a problem is duplicated; the message names source, row and
            field.
    """
    seen: set[str] = set()
    for source in sources:
        for row, record in records(source, whole=True):
            try:
                problem = READ[benchmark](record, row)
            except ValueError as error:
                raise BadInput(f"{source.place}, {error}") from error
            if problem.problem_id in seen:
                raise BadInput(f"{source.place}, row {row}: problem {problem.problem_id} is a duplicate: remove it")
            seen.add(problem.problem_id)
            for name, value in as_row(problem).items():
                encodable(json.dumps(value, ensure_ascii=False), name, f"{source.place}, row {row}")
            yield problem


def _judgeable(problems: Iterable[Problem], place: str) -> Iterator[Problem]:
    """MT-Bench's questions. Raises `BadInput` if one lacks a reference answer that the judge must see."""
    for problem in problems:
        try:
            mtbench.judge_messages(problem, 1 + len(problem.follow_ups), ("", ""))  # the last turn needs all references
        except ValueError as error:
            raise BadInput(f"{place}: {error}") from error
        yield problem


@step
def read_problems(
    plan: Plan,
    store: Store,
    *,
    benchmark: Benchmark,
    sources: Sequence[Source],
    references: Source | None = None,
    limit: int | None = None,
) -> Ref:
    """Write the table `problems`: the first `limit` problems of the sources, in order; all if `limit` is None.

    `references`: the separate file of MT-Bench's reference answers to its maths, reasoning and coding questions.

    Raises:
        BadInput: as `problems_of`; or such a reference answer is missing.
    """
    problems: Iterable[Problem] = islice(problems_of(benchmark, sources), limit)
    if references is not None:
        try:
            problems = mtbench.with_references(problems, (record for _, record in records(references, whole=True)))
        except ValueError as error:
            raise BadInput(f"{references.place}: {error}") from error
    if benchmark == "mt-bench":
        problems = _judgeable(problems, (references or sources[0]).place)
    rows = (as_row(problem) for problem in problems)
    return write_table(store, plan.step, plan.key, PROBLEMS, batched(rows), plan.provenance)


def as_row(problem: Problem) -> dict[str, Any]:
    """A row of the table `problems`."""
    return {
        "query_id": problem.problem_id,
        "query": problem.query,
        "history": json.dumps(problem.history, ensure_ascii=False),
        "follow_ups": list(problem.follow_ups),
        "reference": problem.reference,
        "category": problem.category,
    }


def topic_of(row: Mapping[str, Any]) -> str | None:
    """The topic of a mined query, or the category of a benchmark's problem, from its row."""
    return row["topic"] if "topic" in row else row["category"]  # type: ignore[no-any-return]


def as_problem(row: Mapping[str, Any]) -> Problem:
    """The problem in a row of the table `problems`."""
    return Problem(
        problem_id=row["query_id"],
        query=row["query"],
        history=tuple(json.loads(row["history"])),
        follow_ups=tuple(row["follow_ups"]),
        reference=row["reference"],
        category=row["category"],
    )
