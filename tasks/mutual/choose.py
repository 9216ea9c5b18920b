"""Active learning (STILL-1): the solutions that the reward model learns most from, as many right as wrong ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cot_formats.responses import PLAIN
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from tasks.mutual.judge import JudgeConfig
from tasks.queries.draw import order_key
from tasks.responses.perplexity import name_of


class ActiveConfig(BaseModel):
    """Which judged solutions the reward model is trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["error", "uncertainty", "random"] = Field(
        "error",
        description="`error`: those on which the current reward model errs most. `uncertainty`: those of which it is "
        "least sure. `random`. In the first round there is no reward model yet, and the choice is random (STILL-1 "
        "states neither rule nor number; this project's choice).",
    )
    limit: int = Field(
        4_000, ge=2, description="Maximum number of solutions of a round, half of them right (this project's choice)."
    )
    seed: int = Field(0, description="Seed of the random choice, and of ties.")


def place(row: Mapping[str, Any], config: ActiveConfig) -> tuple[float, float]:
    """The solutions with the smallest places are chosen."""
    drawn, judged = order_key(config.seed, name_of(row)), row["probability"]
    if config.by == "random":
        return 0.0, drawn
    if judged is None:  # all of them in the first round; later those that could not be judged, which come last
        return math.inf, drawn
    if config.by == "error":
        return -abs(float(row["right"]) - judged), drawn
    return abs(judged - 0.5), drawn


def choose(rows: Sequence[dict[str, Any]], config: ActiveConfig) -> list[dict[str, Any]]:
    """As many right as wrong solutions, `limit` at most; none if either are missing."""
    sides = [[row for row in rows if row["right"] is side] for side in (True, False)]
    count = min(config.limit // 2, *map(len, sides))
    return [row for side in sides for row in sorted(side, key=lambda row: place(row, config))[:count]]


@step(outside_key=("judge.in_flight", "judge.max_quarantined_share"))
def choose_judged(
    plan: Plan,
    store: Store,
    *,
    config: ActiveConfig,
    judge: JudgeConfig,
    judged: Ref,
    responses: Sequence[Ref],
    queries: Ref,
) -> Ref:
    """Write what the reward model is trained on, as a table `longcot`: the question about each chosen solution, and
    the right answer to it. The table is empty if all solutions are right, or all are wrong.
    """
    texts = {
        name_of(row): row["solution"]
        for row in chain.from_iterable(
            read_rows(store, shard, ["query_id", "sample", "solution"]) for shard in responses
        )
    }
    different: dict[tuple[str, str], dict[str, Any]] = {}
    for row in read_rows(store, judged):
        different.setdefault((row["query_id"], texts[name_of(row)]), row)
    chosen = choose([*different.values()], config)
    counts = Counter("right" if row["right"] else "wrong" for row in different.values())
    asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}

    def rows() -> Iterator[dict[str, Any]]:
        for row in sorted(chosen, key=lambda row: order_key(config.seed, name_of(row))):
            question = judge.question(asked[row["query_id"]], texts[name_of(row)])
            plain = {"query_id": row["query_id"], "sample": row["sample"], "query": question, "thoughts": ""}
            answer = judge.right if row["right"] else judge.wrong
            yield {**plain, "solution": answer, "format": PLAIN, "reward": float(row["right"])}

    found = {"different": len(different), "right": counts["right"], "wrong": counts["wrong"], "chosen": len(chosen)}
    return write_table(store, plan.step, plan.key, LONGCOT, batched(rows()), plan.provenance, counts=found)
