"""MT-Bench's second turn: each question's follow-up, after the first turn and the model's answer to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import PROBLEMS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table


@step
def second_turn(
    plan: Plan, store: Store, *, problems: Ref, responses: Sequence[Ref], thoughts_in_history: bool = False
) -> Ref:
    """Write the table `problems` of the second turn, in the order of the first, without the questions that have none.

    The history holds only the solution of the first answer, as chat products show it; with `thoughts_in_history`, it
    holds the answer as the model wrote it, and what the chat template makes of the thoughts is up to the template. If
    the answer has no solution, the history holds an empty answer, and this is counted.
    """
    counts: Counter[str] = Counter()
    answers = {row["query_id"]: row for each in responses for row in read_rows(store, each)}

    def rows() -> Iterator[dict[str, Any]]:
        for problem in read_rows(store, problems):
            if not problem["follow_ups"]:
                continue
            answer = answers.get(problem["query_id"], {"text": "", "solution": None})  # missing if quarantined
            counts["without a first solution"] += answer["solution"] is None
            content = answer["text"] if thoughts_in_history else answer["solution"] or ""
            turns = [
                *json.loads(problem["history"]),
                {"role": "user", "content": problem["query"]},
                {"role": "assistant", "content": content},
            ]
            yield {
                **problem,
                "query": problem["follow_ups"][0],
                "history": json.dumps(turns, ensure_ascii=False),
                "follow_ups": problem["follow_ups"][1:],
            }

    return write_table(store, plan.step, plan.key, PROBLEMS, batched(rows()), plan.provenance, counts=lambda: counts)
