"""The rollouts of a round in one table: those that are well-formed and verified, each right or wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from cot_formats.responses import is_well_formed
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import EXPLORED
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table

TEXTS = ("thoughts", "solution", "thought_tokens", "solution_tokens")


def rollouts_of(
    store: Store, responses: Sequence[Ref], scores: Sequence[Ref], shards: int, columns: Sequence[str] = ()
) -> Iterator[tuple[dict[str, Any], bool, bool | None]]:
    """Each rollout, wave by wave: its row, whether it is well-formed, and whether it is right as well; None if the
    verifier had no result.

    Args:
        responses: the shards of the first wave, then those of the second, ...; each wave has as many `shards`.
        scores: a table for each wave.
        columns: those of the row, beside query_id, sample, violations and finish_reason.
    """
    read = ["query_id", "sample", "violations", "finish_reason", *columns]
    for wave, table in enumerate(scores):
        named = ["query_id", "sample", "verified"]
        verified = {(row["query_id"], row["sample"]): row["verified"] for row in read_rows(store, table, named)}
        for shard in responses[wave * shards : (wave + 1) * shards]:
            for row in read_rows(store, shard, read):
                whole = is_well_formed(row)
                yield row, whole, verified.get((row["query_id"], row["sample"])) if whole else False


@step
def gather(
    plan: Plan, store: Store, *, queries: Ref, responses: Sequence[Ref], scores: Sequence[Ref], shards: int
) -> Ref:
    """Write the table `explored` of a round. `counts` has the funnel, and how many problems have a right rollout.

    `responses`, `scores`, `shards`: as for `rollouts_of`.
    """
    funnel: Counter[str] = Counter({"problems": queries.rows, "rollouts": 0, "right": 0, "solved": 0})
    solved: set[str] = set()
    numbered: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for row, whole, right in rollouts_of(store, responses, scores, shards, TEXTS):
            query_id = row["query_id"]
            number = numbered[query_id]
            numbered[query_id] += 1
            funnel["rollouts"] += 1
            if not whole:
                funnel["dropped: truncated" if row["finish_reason"] != "stop" else "dropped: malformed"] += 1
                continue
            if right is None:
                funnel["dropped: not verified"] += 1
                continue
            funnel["right" if right else "wrong"] += 1
            if right:
                solved.add(query_id)
            taken = {name: row[name] for name in TEXTS}
            yield {"query_id": query_id, "sample": number, **taken, "correct": right}
        funnel["solved"] = len(solved)

    return write_table(
        store, plan.step, plan.key, EXPLORED, batched(rows()), plan.provenance, counts=lambda: dict(funnel)
    )
