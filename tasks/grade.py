"""Grading: each response's solution against its problem's reference answer. The thoughts are never looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from evals import short_answer
from infra.manifest import Ref
from infra.schemas import GRADES
from infra.steps import Plan, step
from infra.store import Store
from infra.tables import read_rows, scan, write_table
from tasks.curate_examples import BadInput


def graded(response: dict[str, Any], reference: str) -> dict[str, Any]:
    prediction = short_answer.extract(response["solution"])
    return {
        "problem_id": response["query_id"],
        "sample": response["sample"],
        "prediction": prediction,
        "correct": short_answer.is_correct(prediction, reference),
        "thought_tokens": response["thought_tokens"],
        "solution_tokens": response["solution_tokens"],
        "truncated": response["finish_reason"] != "stop",
        "off_format": bool(response["violations"]),
    }


@step
def grade(plan: Plan, store: Store, *, responses: Sequence[Ref], problems: Ref) -> Ref:
    """Write the table `grades`, a row a response."""
    references = {row["query_id"]: row["reference"] for row in read_rows(store, problems, ["query_id", "reference"])}
    missing = [query_id for query_id, reference in references.items() if reference is None]
    if missing:
        raise BadInput(
            f"{problems.uri}: field reference is null in {len(missing)} rows (first: {missing[0]}); grading needs it"
        )
    tally: Counter[str] = Counter()

    def batches() -> Iterator[list[dict[str, Any]]]:
        for shard in responses:
            for batch in scan(store, shard):
                rows = [graded(row, references[row["query_id"]]) for row in batch.to_pylist()]
                tally["graded"] += len(rows)
                tally["correct"] += sum(row["correct"] for row in rows)
                tally["no answer"] += sum(row["prediction"] is None for row in rows)
                yield rows

    return write_table(store, plan.step, plan.key, GRADES, batches(), plan.provenance, counts=lambda: dict(tally))
