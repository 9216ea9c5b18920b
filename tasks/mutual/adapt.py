"""Format adaptation (STILL-1): solutions in steps, which the policy is first fine-tuned on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cot_formats.responses import PLAIN
from cot_formats.steps import Steps
from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from tasks.queries.clean import cleaned
from tasks.queries.fields import typed
from tasks.queries.identity import query_id
from tasks.queries.sources import Skipped, Source, first_turn, records_or_faults
from tasks.queries.turns import NoQuery

FEW = 10
"""Solutions of which all may have a single step."""


class StepFormat(BaseModel):
    """How a solution is written step by step. STILL-1 states neither text; both are this project's choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delimiter: str = Field("\n\n", min_length=1, description="Text that ends each step.")
    answer: str = Field(
        "\\boxed{", pattern=r"\S", description="Text by which the step with the final answer is recognised."
    )

    @property
    def steps(self) -> Steps:
        """The format that parses and renders."""
        return Steps(self.delimiter, self.answer)


class SolvedSource(Source):
    """A file or data set of queries with step-by-step solutions: set `path` or `dataset`."""

    solution: str = Field("solution", description="Field with the solution.")


@step
def adapt_solutions(plan: Plan, store: Store, *, format: StepFormat, longcot: Ref) -> Ref:
    """Write the solutions of `longcot` that are in the step format, without their thoughts, as a table `longcot`.

    Raises:
        BadInput: none is.
    """
    rows = read_rows(store, longcot, ["query_id", "sample", "query", "solution", "reward"])
    return write_solutions(plan, store, format, rows, Counter())


@step
def read_solutions(
    plan: Plan, store: Store, *, format: StepFormat, sources: Sequence[SolvedSource], queries: Ref
) -> Ref:
    """Write the sources' solutions that are in the step format, of the mined `queries` alone, as a table `longcot`.

    Raises:
        BadInput: none is; or as `tasks.queries.sources.records`, or more than 1 % of a source's records are malformed.
    """
    wanted = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    funnel: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        numbers: Counter[str] = Counter()
        for source in sources:
            skipped, used = Skipped(source.place), 0
            for number, record in records_or_faults(source, whole=True):
                where = f"{source.place}, row {number}"
                try:
                    if isinstance(record, BadInput):
                        raise record
                    if source.solution not in record:
                        raise BadInput(f"{where}: expected a field {source.solution}: set `solution` to the field")
                    identity = query_id(cleaned(first_turn(record, source, where)))
                    solution = typed(record, source.solution, str, where)
                except NoQuery as without:
                    skipped.reasons[str(without)] += 1
                    continue
                except BadInput as fault:
                    skipped.malformed(fault, number)
                    continue
                used += 1
                if identity not in wanted:
                    funnel["dropped: the query was not kept by mining"] += 1
                    continue
                numbers[identity] += 1
                plain = {"query_id": identity, "sample": numbers[identity] - 1, "query": wanted[identity]}
                yield {**plain, "solution": solution or "", "reward": 0.0}
            skipped.refuse_many(used + skipped.reasons.total())
            for reason, count in skipped.reasons.items():
                funnel[f"dropped: {reason}"] += count

    return write_solutions(plan, store, format, rows(), funnel)


def write_solutions(
    plan: Plan, store: Store, format: StepFormat, given: Iterator[dict[str, Any]], funnel: Counter[str]
) -> Ref:
    """Write what `in_steps` keeps of the solutions. Raises `BadInput` if that is none, or only single steps."""

    def rows() -> Iterator[dict[str, Any]]:
        alone = 0
        for row in in_steps(format, given, funnel):
            alone += len(format.steps.parse(row["solution"]).steps) == 1
            yield row
        if not funnel["kept"]:
            raise BadInput(
                f"{plan.step}: no solution is in the step format ({dict(funnel)}): set steps.delimiter and "
                "steps.answer to what ends a step and what marks the answer in your solutions"
            )
        if alone == funnel["kept"] > FEW:
            raise BadInput(
                f"{plan.step}: each of {funnel['kept']} solutions is a single step, so that the policy would learn "
                f"none: set steps.delimiter, {format.delimiter!r}, to what ends a step in your solutions"
            )

    def counts() -> dict[str, int]:
        return {"read": funnel.total(), **funnel}

    return write_table(store, plan.step, plan.key, LONGCOT, batched(rows()), plan.provenance, counts=counts)


def in_steps(format: StepFormat, given: Iterator[dict[str, Any]], funnel: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of `longcot`: the solutions that are in the step format and differ from others of their query. `funnel`
    counts those, and why others are dropped."""
    seen: set[bytes] = set()
    for row in given:
        solution = row["solution"].replace("\r\n", "\n").strip()
        parsed = format.steps.parse(solution)
        if not parsed.ok:
            funnel[f"dropped: {parsed.violations[0].name}"] += 1
        elif (mark := hashlib.sha256(f"{row['query_id']} {solution}".encode()).digest()[:16]) in seen:
            funnel["dropped: duplicate"] += 1
        else:
            seen.add(mark)
            funnel["kept"] += 1
            yield {**row, "solution": solution, "thoughts": "", "format": PLAIN}
