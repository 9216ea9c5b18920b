"""Selection (BOLT section 3.1.3): drop scores below the 30th percentile, then keep the best response to each query."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from sys import intern
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cot_formats.responses import LongFormat
from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import batched, read_rows, scan, write_table

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
BINS = 60  # of the histogram of rewards
LENGTHS = ("thought_tokens", "solution_tokens")


class SelectConfig(BaseModel):
    """Which responses the policy is trained on, and in which format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    percentile: float = Field(30.0, ge=0, le=100, description="Scores below this percentile are dropped (BOLT: 30).")
    drop_wrong: bool = Field(
        True,
        description="Drop responses whose answer differs from the query's reference answer. It is known if "
        "`score.verified_weight` is above 0 (this project's option; BOLT has no references).",
    )
    pick: Literal["best", "random"] = Field(
        "best",
        description="Which of a query's remaining responses is kept: the one with the highest reward (BOLT), or, for "
        "comparison, a random one.",
    )
    format: LongFormat = Field("bolt", description="LongCoT format that the policy is trained to write.")


def threshold(store: Store, scores: Ref, percentile: float) -> float:
    """The exact percentile (linear interpolation) of all rewards.

    Raises:
        ValueError: there are no scores.
    """
    if not scores.rows:
        raise ValueError(
            f"{scores.uri} holds no scores: no response had a solution; the counts in its inputs' manifests show why"
        )
    return float(np.percentile(rewards(store, scores), percentile))


def rewards(store: Store, scores: Ref) -> Floats:
    """The reward of every scored sample; takes 8 bytes per row, far less than the rows of `first_of_each`."""
    return np.concatenate([batch.column("reward").to_numpy() for batch in scan(store, scores, ["reward"])])


def histogram(store: Store, scores: Ref) -> dict[str, list[Any]]:
    """The histogram of the rewards: `BINS` bins of equal width over their range.

    Returns `edges`, one more than bins, and `samples`, the number in each bin.
    """
    samples, edges = np.histogram(rewards(store, scores), bins=BINS)
    return {"edges": edges.tolist(), "samples": samples.tolist()}


def by_reward(row: dict[str, Any]) -> tuple[float, int]:
    """The highest reward comes first; ties go to the lowest sample number."""
    return -row["reward"], row["sample"]


def at_random(row: dict[str, Any]) -> str:
    """An order of a query's samples that depends on nothing but their names."""
    return hashlib.sha256(f"{row['query_id']} {row['sample']}".encode()).hexdigest()


def first_of_each(
    scores: Iterable[dict[str, Any]],
    least: float,
    *,
    drop_wrong: bool = False,
    order: Callable[[dict[str, Any]], Any] = by_reward,
) -> dict[str, dict[str, Any]]:
    """The row of each query that comes first by `order`, among those whose reward is not below `least`.

    With `drop_wrong`, rows whose answer was verified and is wrong are left out.

    Holds one row per query in memory.
    """
    best: dict[str, dict[str, Any]] = {}
    for row in scores:
        held = best.get(row["query_id"])
        better = held is None or order(row) < order(held)
        wrong = drop_wrong and row["verified"] is False
        if row["reward"] >= least and better and not wrong:
            best[row["query_id"]] = row
    return best


def wrong_answers(store: Store, scores: Ref, least: float) -> int:
    """How many of the samples whose reward is not below `least` were verified and are wrong."""
    rows = read_rows(store, scores, ["reward", "verified"])
    return sum(row["verified"] is False and row["reward"] >= least for row in rows)


@step
def select(
    plan: Plan,
    store: Store,
    *,
    config: SelectConfig,
    responses: Sequence[Ref],
    scores: Ref,
    queries: Ref,
) -> Ref:
    """Write the table `longcot`: each query kept, and the thoughts and solution of its best response.

    The manifest's `counts` describe the data set: rewards, lengths, topics and sources of the rows kept.

    Raises:
        ValueError: there are no scores.
        BadInput: no response is kept, since all answers are wrong.
    """
    least = threshold(store, scores, config.percentile)
    rows_scored = read_rows(store, scores, ["query_id", "sample", "reward", "verified"])
    order = by_reward if config.pick == "best" else at_random
    best = first_of_each(rows_scored, least, drop_wrong=config.drop_wrong, order=order)
    if not best:
        raise BadInput(
            f"{plan.step}: none of {scores.rows} responses gives its query's reference answer, so none is kept: use "
            "more samples or easier queries, check that score.verifier reads such answers, or set select.drop_wrong "
            "to false"
        )
    columns = ["query_id", "query", "topic", "source"]
    described = {
        row["query_id"]: (row["query"], intern(row["topic"] or ""), intern(row["source"]))
        for row in read_rows(store, queries, columns)
        if row["query_id"] in best
    }
    kept: dict[str, list[float]] = {name: [] for name in ("reward", *LENGTHS)}
    topics: Counter[str] = Counter()
    sources: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        columns = ["query_id", "sample", "thoughts", "solution", *LENGTHS]
        batches = chain.from_iterable(scan(store, table, columns, batch_rows=250) for table in responses)
        for row in (row for batch in batches for row in batch.to_pylist()):
            held = best.get(row["query_id"])
            if held is None or held["sample"] != row["sample"]:
                continue
            query, topic, source = described[row["query_id"]]
            topics[topic] += 1
            sources[source] += 1
            for name, values in kept.items():
                values.append(held["reward"] if name == "reward" else row[name])
            yield {
                "query_id": row["query_id"],
                "sample": row["sample"],
                "query": query,
                "thoughts": row["thoughts"],
                "solution": row["solution"],
                "format": config.format,
                "reward": held["reward"],
            }

    def counts() -> dict[str, Any]:
        below = int((rewards(store, scores) < least).sum())
        wrong = wrong_answers(store, scores, least) if config.drop_wrong else 0
        beaten = scores.rows - below - wrong - len(kept["reward"])
        return {
            "scored": scores.rows,
            "below the percentile": below,
            **({"wrong answer": wrong} if wrong else {}),
            "not the best of its query": beaten,
            "kept": len(kept["reward"]),
            "threshold": least,
            "rewards": histogram(store, scores),
            "of those kept": {name: spread(values) for name, values in kept.items()},
            "topics": dict(topics.most_common()),
            "sources": dict(sources.most_common()),
        }

    return write_table(store, plan.step, plan.key, LONGCOT, batched(rows()), plan.provenance, counts=counts)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and percentiles of the values, by name; empty if there are none."""
    if not values:
        return {}
    shares = {"5 %": 5, "median": 50, "95 %": 95, "max": 100}
    return {"mean": float(np.mean(values))} | {name: float(np.percentile(values, q)) for name, q in shares.items()}
