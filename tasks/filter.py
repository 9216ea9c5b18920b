"""Filtering by rule (BOLT section 3.1.3): responses off the format are dropped, each with its reason counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from infra.manifest import Ref
from infra.schemas import RESPONSES
from infra.steps import Plan, step
from infra.store import Store
from infra.tables import scan, write_table


def reason_to_drop(response: dict[str, Any]) -> str | None:
    """Why a response is dropped, or None where it is kept."""
    if response["finish_reason"] != "stop":
        return "truncated"
    return f"off format: {response['violations'][0]}" if response["violations"] else None


@step
def filter_responses(plan: Plan, store: Store, *, responses: Sequence[Ref]) -> Ref:
    """Write the table `filtered`: the well-formed responses of all shards."""
    funnel: Counter[str] = Counter()

    def kept() -> Iterator[list[dict[str, Any]]]:
        for shard in responses:
            for batch in scan(store, shard):
                rows = []
                for row in batch.to_pylist():
                    reason = reason_to_drop(row)
                    funnel["read"] += 1
                    funnel[f"dropped: {reason}" if reason else "kept"] += 1
                    if reason is None:
                        rows.append(row)
                yield rows

    return write_table(store, plan.step, plan.key, RESPONSES, kept(), plan.provenance, counts=lambda: dict(funnel))
