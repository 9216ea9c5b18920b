"""Grading: compare each response's solution with its problem's reference answer. The thoughts are never graded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

from evals import graders
from evals.everyday import is_gradable
from evals.graders import Grade
from infra.errors import BadInput
from infra.processes.limited import Limited, NoResult
from infra.steps.progress import counted
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import GRADES
from infra.store.store import Store
from infra.store.tables import read_rows, scan, write_table
from tasks.evaluation.problems import SHORT_ANSWER, Benchmark, Verifiable

LINEAR: Mapping[str, Callable[[str | None, str], Grade]] = {
    SHORT_ANSWER: graders.short_answer,
    "everyday": graders.everyday,
    "zebralogic": graders.zebralogic,
}
"""Graders that take time linear in the length of the text, and so need no limit."""
WRONG: Grade = {"prediction": None, "correct": False, "parts": None, "correct_parts": None}
NO_RESPONSE = {"thought_tokens": 0, "solution_tokens": 0, "finish_reason": "stop", "violations": []}


def grade_row(response: Mapping[str, Any], grade: Grade) -> dict[str, Any]:
    """A row of `grades`."""
    return {
        "problem_id": response["query_id"],
        "sample": response["sample"],
        **grade,
        "thought_tokens": response["thought_tokens"],
        "solution_tokens": response["solution_tokens"],
        "truncated": response["finish_reason"] != "stop",
        "malformed": bool(response["violations"]),
    }


def references_of(store: Store, problems: Ref, benchmark: Benchmark) -> dict[str, str]:
    """The reference answers by problem id.

    Raises:
        BadInput: a problem has no reference answer, or one that the grader `everyday` cannot compare.
    """
    references = {row["query_id"]: row["reference"] for row in read_rows(store, problems, ["query_id", "reference"])}
    missing = [query_id for query_id, reference in references.items() if reference is None]
    if missing:
        raise BadInput(
            f"{problems.uri}: field reference is null in {len(missing)} rows (first: {missing[0]}), but grading needs "
            "it: add the reference answers, or leave these problems out"
        )
    if benchmark == "everyday" and (odd := [each for each in references.items() if not is_gradable(each[1])]):
        raise BadInput(
            f"{problems.uri}: field reference of {len(odd)} rows is neither a number nor a day of the week (first: "
            f"{odd[0][0]}, {odd[0][1]!r}), so that `everyday` would count every answer as wrong: correct these rows, "
            "leave them out, or grade with `math500` or `short-answer`"
        )
    return references


@step
def grade(
    plan: Plan, store: Store, *, responses: Sequence[Ref], problems: Ref, benchmark: Verifiable = SHORT_ANSWER
) -> Ref:
    """Write the table `grades`: one row per response.

    A problem whose request was quarantined has no responses: each of its samples is graded wrong, without prediction.
    So is a response that the grader cannot finish within the limits of `Limited`, and these are counted.

    Raises:
        BadInput: as `references_of`.
    """
    references = references_of(store, problems, benchmark)
    tally: Counter[str] = Counter()

    def batches() -> Iterator[list[dict[str, Any]]]:
        with ExitStack() as stack:
            grader = LINEAR.get(benchmark) or _limited_grader(stack, benchmark, tally)
            answers = chain.from_iterable(scan(store, shard) for shard in responses)
            unanswered, samples = dict.fromkeys(references), 1
            for batch in counted(plan.step, answers, sum(shard.rows for shard in responses)):
                rows = [
                    grade_row(row, grader(row["solution"], references[row["query_id"]])) for row in batch.to_pylist()
                ]
                for row in rows:
                    unanswered.pop(row["problem_id"], None)
                    samples = max(samples, row["sample"] + 1)
                tally["graded"] += len(rows)
                tally["correct"] += sum(row["correct"] for row in rows)
                tally["no answer"] += sum(row["prediction"] is None for row in rows)
                yield rows
            if unanswered:
                tally["quarantined"] = samples * len(unanswered)
            yield [
                grade_row({**NO_RESPONSE, "query_id": name, "sample": n}, WRONG)
                for name in unanswered
                for n in range(samples)
            ]

    return write_table(store, plan.step, plan.key, GRADES, batches(), plan.provenance, counts=lambda: dict(tally))


def _limited_grader(stack: ExitStack, benchmark: Verifiable, tally: Counter[str]) -> Callable[[str | None, str], Grade]:
    """The benchmark's grader in a process of its own, with limits on time and memory."""
    name = f"evals.graders:{benchmark.replace('-', '_')}"
    child = stack.enter_context(Limited(name))

    def grader(solution: str | None, reference: str) -> Grade:
        found: Grade | NoResult = child(solution, reference)
        if isinstance(found, NoResult):
            tally[f"not graded: {found.reason}"] += 1
            return WRONG
        return found

    return grader
