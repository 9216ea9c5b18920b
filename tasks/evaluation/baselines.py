"""The answers that a judged benchmark compares with: a baseline model's, from files in the authors' layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from evals import arenahard, wildbench
from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import BASELINES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from tasks.evaluation.problems import Judged
from tasks.queries.fields import encodable
from tasks.queries.sources import Source, records

Answer: TypeAlias = arenahard.Answer | wildbench.Answer
READ: Mapping[Judged, Callable[[Mapping[str, Any], int], Answer]] = {
    "arena-hard-v0.1": arenahard.read_answer,
    "arena-hard-v2.0": arenahard.read_answer,
    "wildbench": wildbench.read_answer,
}


@step
def read_baselines(plan: Plan, store: Store, *, benchmark: Judged, sources: Sequence[Source], problems: Ref) -> Ref:
    """Write the table `baselines`: one answer per problem, in the order of the problems.

    If the sources have several answers to a problem, the one by the model that the authors compare with is taken.

    Raises:
        BadInput: a record is not in the authors' layout, or a problem has no answer, or several candidates.
    """
    found: defaultdict[str, list[Answer]] = defaultdict(list)
    for source in sources:
        for row, record in records(source, whole=True):
            try:
                answer = READ[benchmark](record, row)
            except ValueError as error:
                raise BadInput(f"{source.place}, {error}") from error
            encodable(answer.text, "of the answer", f"{source.place}, row {row}")
            found[answer.problem_id].append(answer)
    places = ", ".join(source.place for source in sources)

    def chosen(problem: Mapping[str, Any]) -> dict[str, Any]:
        answers = candidates = found[problem["query_id"]]
        if len(answers) > 1:
            answers = [each for each in candidates if each.model == arenahard.BASELINES.get(problem["category"])]
        if len(answers) != 1:
            raise BadInput(
                f"{places}: {len(candidates)} answers to {benchmark}'s problem {problem['query_id']} (category "
                f"{problem['category']}), expected one: give the baseline model's answer to every problem"
            )
        return {"query_id": problem["query_id"], "model": answers[0].model, "text": answers[0].text}

    rows = (chosen(problem) for problem in read_rows(store, problems, ["query_id", "category"]))
    return write_table(store, plan.step, plan.key, BASELINES, batched(rows), plan.provenance)
