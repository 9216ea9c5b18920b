"""The right rollouts that a model learns from (STILL-2): their lengths follow those of the imitated thoughts.

For each type of problem, the lengths of n imitated thoughts are summarised by n quantiles. The problem whose right
rollouts are shortest gets the smallest quantile as its target, and so on; of its rollouts, the one closest to the
target is picked.
"""

from __future__ import annotations

import logging
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from cot_formats.responses import LongFormat
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from tasks.queries.draw import order_key
from tasks.responses.perplexity import name_of

log = logging.getLogger(__name__)

Lengths = Mapping[str, Sequence[int]]
NO_TYPE = "(none)"
SHOWN_TYPES = 12
"""Types of problems whose lengths are reported, the most frequent ones: a column of topics may have thousands."""


class PickConfig(BaseModel):
    """Which right rollouts are picked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["length", "random", "shortest", "perplexity"] = Field(
        "length",
        description="`length`: as long as the imitated thoughts on the same type of problem (STILL-2). `random`; "
        "`shortest`; `perplexity`: the thoughts that the policy itself finds least likely.",
    )
    per_problem: int = Field(
        1,
        ge=1,
        description="Maximum number of rollouts picked for a problem (not stated by STILL-2; this project's choice).",
    )
    limit: int | None = Field(None, ge=1, description="Maximum number of rollouts picked in a round. Null: no limit.")
    seed: int = Field(0, description="Seed of the random picks, and of the draw if there is a limit.")


def targets(lengths: Sequence[int], count: int) -> list[float]:
    """`count` quantiles of the lengths, in rising order: in the middle of as many equal parts."""
    return [float(each) for each in np.quantile(lengths, (np.arange(count) + 0.5) / count)]


def quantiles(lengths: Sequence[int]) -> list[float]:
    """The lengths' 0th, 5th, ..., 100th percentile."""
    return [float(each) for each in np.percentile(lengths, range(0, 101, 5))]


def picked_by_length(rollouts: Mapping[str, Sequence[dict[str, Any]]], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """One rollout of each problem of a type, so that together they are as long as `lengths`.

    `rollouts`: the right ones by problem, none of them empty; each has `thought_tokens`.
    """
    order = sorted(
        rollouts, key=lambda name: (statistics.median(row["thought_tokens"] for row in rollouts[name]), name)
    )
    return [
        min(rollouts[name], key=lambda row: (abs(row["thought_tokens"] - target), row["sample"]))
        for name, target in zip(order, targets(lengths, len(order)), strict=True)
    ]


def pick(
    rollouts: Mapping[str, Sequence[dict[str, Any]]], types: Mapping[str, str], lengths: Lengths, config: PickConfig
) -> list[dict[str, Any]]:
    """The rollouts that are picked.

    Args:
        rollouts: the right ones by problem, with query_id, sample, thought_tokens and, if picked by it, perplexity.
        types: the type of each problem.
        lengths: of the imitated thoughts, in tokens, by type of problem. A type that has none is compared with all.
    """
    left = {name: list(rows) for name, rows in rollouts.items() if rows}
    everything = [length for each in lengths.values() for length in each]
    chosen: list[dict[str, Any]] = []
    for _ in range(config.per_problem):
        found: list[dict[str, Any]] = []
        if config.by == "length":
            for kind in dict.fromkeys(types[name] for name in left):
                own = {name: rows for name, rows in left.items() if types[name] == kind}
                found += picked_by_length(own, lengths.get(kind) or everything)
        else:
            found += [min(rows, key=lambda row: _place(row, config)) for rows in left.values()]
        for row in found:
            left[row["query_id"]].remove(row)
        left = {name: rows for name, rows in left.items() if rows}
        chosen += found
    if config.limit is not None and len(chosen) > config.limit:
        chosen = sorted(chosen, key=lambda row: order_key(config.seed, name_of(row)))[: config.limit]
    return sorted(chosen, key=lambda row: (row["query_id"], row["sample"]))


def _place(row: Mapping[str, Any], config: PickConfig) -> tuple[float, int]:
    """The rollout of a problem with the smallest place is picked."""
    if config.by == "random":
        return order_key(config.seed, name_of(row)), 0
    if config.by == "shortest":
        return row["thought_tokens"], row["sample"]
    return -row["perplexity"], row["sample"]


def imitated_lengths(store: Store, imitated: Ref, distilled: Sequence[Ref]) -> dict[str, list[int]]:
    """The thought tokens of the texts that are imitated, by type of problem."""
    kept = {(row["query_id"], row["sample"]) for row in read_rows(store, imitated, ["query_id", "sample"])}
    found: dict[str, list[int]] = defaultdict(list)
    for table in distilled:
        for row in read_rows(store, table, ["query_id", "sample", "topic", "thought_tokens", "solution"]):
            if (row["query_id"], row["sample"]) in kept and row["solution"] is not None:
                found[row["topic"] or NO_TYPE].append(row["thought_tokens"])
    return found


@step
def pick_explored(
    plan: Plan,
    store: Store,
    *,
    config: PickConfig,
    explored: Ref,
    queries: Ref,
    imitated: Ref,
    distilled: Sequence[Ref],
    perplexities: Sequence[Ref],
    format: LongFormat,
    max_tokens: int,
) -> Ref:
    """Write the table `longcot` of the right rollouts that are picked; it may be empty.

    Rollouts that cannot be written in `format` are left out, and those of more than `max_tokens` tokens of thoughts and
    solution, which the training would drop. `counts` has `quantiles` of the lengths of imitated thoughts, of all right
    rollouts and of those picked, for the `SHOWN_TYPES` most frequent types of problem.
    """
    found = {
        (row["query_id"], row["sample"]): row["perplexity"] for table in perplexities for row in read_rows(store, table)
    }
    asked = {row["query_id"]: row for row in read_rows(store, queries, ["query_id", "query", "topic"])}
    types = {name: row["topic"] or NO_TYPE for name, row in asked.items()}
    right: dict[str, list[dict[str, Any]]] = defaultdict(list)
    funnel = Counter({"rollouts": explored.rows, "right": 0})
    columns = ["query_id", "sample", "thought_tokens", "solution_tokens", "correct", "thoughts", "solution"]
    for row in read_rows(store, explored, columns):
        if not row["correct"]:
            continue
        funnel["right"] += 1
        thoughts, solution = row.pop("thoughts"), row.pop("solution")
        perplexity = found.get((row["query_id"], row["sample"]))
        if not _renders(format, thoughts, solution):
            funnel[f"dropped: cannot be written as {format}"] += 1
        elif row["thought_tokens"] + row["solution_tokens"] > max_tokens:
            funnel["dropped: longer than the training reads"] += 1
        elif config.by == "perplexity" and perplexity is None:
            funnel["dropped: perplexity not known"] += 1
        else:
            right[row["query_id"]].append({**row, "perplexity": perplexity})
    lengths = imitated_lengths(store, imitated, distilled)
    chosen = {(row["query_id"], row["sample"]): row for row in pick(right, types, lengths, config)}
    funnel["picked"] = len(chosen)
    if alone := sorted({types[name] for name in right} - lengths.keys()):
        log.warning("%s: nothing of the type %s is imitated: compared with all lengths", plan.step, ", ".join(alone))
    shown: dict[str, dict[str, list[int]]] = {kind: {"imitated": [*each]} for kind, each in lengths.items()}
    for label, rows in (("right", (row for each in right.values() for row in each)), ("picked", chosen.values())):
        for row in rows:
            shown.setdefault(types[row["query_id"]], {}).setdefault(label, []).append(row["thought_tokens"])

    def longcot() -> Iterator[dict[str, Any]]:
        for row in read_rows(store, explored):
            if (row["query_id"], row["sample"]) in chosen:
                taken = {name: row[name] for name in ("query_id", "sample", "thoughts", "solution")}
                yield {**taken, "query": asked[row["query_id"]]["query"], "format": format, "reward": 1.0}

    most = sorted(shown, key=lambda kind: (-sum(map(len, shown[kind].values())), kind))[:SHOWN_TYPES]
    spread = {kind: {label: quantiles(each) for label, each in shown[kind].items()} for kind in most}
    counts = {**funnel, "lengths": spread}
    return write_table(store, plan.step, plan.key, LONGCOT, batched(longcot()), plan.provenance, counts=counts)


def _renders(format: LongFormat, thoughts: str, solution: str) -> bool:
    try:
        FORMATS[format].render(thoughts, solution)
    except ValueError:
        return False
    return True
