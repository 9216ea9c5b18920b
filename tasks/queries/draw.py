"""Query mining (BOLT section 3.1.2), last step: a seeded draw, by topic, from the queries that are hard enough.

Queries are drawn in the order of sha256(seed, query id), whatever their order in the table. So two draws with the same
seed share no query if one skips what the other took (its `skip` is at least the other's `skip` plus `limit`). The
queries drawn are written in table order; 25 bytes per row are held in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import compress
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, scan, write_table

FATES = (
    "kept",
    "dropped: too easy",
    "dropped: no reference",
    "dropped: topic not wanted",
    "dropped: topic full",
    "dropped: passed over",
    "dropped: beyond the limit",
)


class DrawConfig(BaseModel):
    """Which of the mined queries are used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_difficulty: int = Field(
        5,
        ge=0,
        le=7,
        description="Minimum number of the 7 criteria met (BOLT: 5); queries without a difficulty are kept.",
    )
    references_only: bool = Field(
        False,
        description="Drop queries without a reference answer. A run without a reward model does so, whatever is set.",
    )
    weights: dict[str, float] | None = Field(
        None, description="Share of each topic in the draw (on any scale; needs `limit`); other topics are dropped."
    )
    caps: dict[str, int] | None = Field(None, description="Maximum number of queries per topic; others have no cap.")
    limit: int | None = Field(None, ge=1, description="Maximum number of queries kept; if omitted, all are kept.")
    skip: int = Field(
        0,
        ge=0,
        description="Number of queries skipped in the order of the draw: set it to the number that another draw took, "
        "so that the two share none.",
    )
    seed: int = Field(0, description="Seed of the draw.")
    min_queries: int = Field(1, ge=1, description="Minimum number of queries kept; the step fails if there are fewer.")

    @model_validator(mode="after")
    def _whole_weights(self) -> Self:
        if self.weights is not None:
            if self.limit is None:
                raise ValueError("weights divide `limit` among the topics: set a limit")
            if self.skip or self.caps:
                raise ValueError("weights cannot be combined with `skip` or `caps`: set either weights or these")
            if not self.weights or min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0:
                raise ValueError("weights: expected numbers >= 0, at least one of them > 0")
        if self.caps is not None and min(self.caps.values(), default=0) < 0:
            raise ValueError("caps: expected numbers >= 0")
        return self


def order_key(seed: int, query_id: str) -> int:
    """A 64-bit hash by which queries are ordered in the draw."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{query_id}".encode()).digest()[:8], "big")


def quotas(available: Mapping[str, int], weights: Mapping[str, float], limit: int) -> dict[str, int]:
    """Divide `limit` among the topics in proportion to their weights: largest remainders, ties broken by name.

    If a topic has fewer queries than its share, the rest goes to the others by their weights, until the limit is
    reached or all topics are used up.
    """
    full: dict[str, int] = {}
    open_topics = {topic: weight for topic, weight in weights.items() if weight > 0 and available.get(topic)}
    while open_topics:
        rest, total = limit - sum(full.values()), sum(open_topics.values())
        exact = {topic: rest * weight / total for topic, weight in open_topics.items()}
        short = [topic for topic, share in exact.items() if share >= available[topic]]
        if not short:
            shares = {topic: int(share) for topic, share in exact.items()}
            by_remainder = sorted(exact, key=lambda topic: (shares[topic] - exact[topic], topic))
            for topic in by_remainder[: rest - sum(shares.values())]:
                shares[topic] += 1
            return full | shares
        full |= {topic: available[topic] for topic in short}
        open_topics = {topic: weight for topic, weight in open_topics.items() if topic not in full}
    return full


def advice(count: Mapping[str, int]) -> str:
    """What to do if too few queries are left. `count`: the number of queries by fate."""
    if count["dropped: no reference"] > sum(count.values()) / 2:
        return "set `reference` of the sources to the field with the answer, or add queries that have one"
    return "add queries, ask for fewer, or lower min_difficulty or skip"


def fates_of(batches: Iterator[pa.RecordBatch], config: DrawConfig) -> npt.NDArray[np.int8]:
    """The fate of every row, as indices into FATES.

    The batches have the columns query_id, difficulty, topic and reference.
    """
    keys, fates, topics = [np.zeros(0, np.uint64)], [np.zeros(0, np.int8)], [np.zeros(0, np.int32)]
    names: dict[str, int] = {}
    for batch in batches:
        keys.append(np.array([order_key(config.seed, each.as_py()) for each in batch.column("query_id")], np.uint64))
        hard = batch.column("difficulty").fill_null(7).to_numpy(zero_copy_only=False) >= config.min_difficulty
        fate = np.where(hard, 0, FATES.index("dropped: too easy")).astype(np.int8)
        if config.references_only:
            missing = batch.column("reference").is_null().to_numpy(zero_copy_only=False)
            fate[missing & hard] = FATES.index("dropped: no reference")
        fates.append(fate)
        named = batch.column("topic").fill_null("").to_pylist()
        topics.append(np.array([names.setdefault(topic, len(names)) for topic in named], np.int32))
    fate, topic = np.concatenate(fates), np.concatenate(topics)
    drawn = np.argsort(np.concatenate(keys), kind="stable")
    drawn = drawn[fate[drawn] == 0]
    if config.weights is not None:
        count = Counter(topic[drawn].tolist())
        shares = quotas({name: count[number] for name, number in names.items()}, config.weights, config.limit or 0)
        for name, number in names.items():
            reason = "dropped: beyond the limit" if config.weights.get(name) else "dropped: topic not wanted"
            fate[drawn[topic[drawn] == number][shares.get(name, 0) :]] = FATES.index(reason)
        return fate
    for name, cap in (config.caps or {}).items():
        fate[drawn[topic[drawn] == names.get(name, -1)][cap:]] = FATES.index("dropped: topic full")
    drawn = drawn[fate[drawn] == 0]
    fate[drawn[: config.skip]] = FATES.index("dropped: passed over")
    if config.limit is not None:
        fate[drawn[config.skip + config.limit :]] = FATES.index("dropped: beyond the limit")
    return fate


@step
def subsample(plan: Plan, store: Store, *, config: DrawConfig, queries: Ref) -> Ref:
    """Write the queries that are drawn.

    Raises:
        BadInput: they are fewer than `min_queries`.
    """
    fates = fates_of(scan(store, queries, ["query_id", "difficulty", "topic", "reference"]), config)
    count = {name: int((fates == number).sum()) for number, name in enumerate(FATES)}
    dropped = {name: number for name, number in count.items() if number and name != "kept"}
    funnel = {"read": len(fates), **dropped, "kept": count["kept"]}
    if count["kept"] < config.min_queries:
        found = count["kept"] + count["dropped: passed over"] + count["dropped: beyond the limit"]
        raise BadInput(
            f"{config.skip + config.min_queries} queries are needed (skip {config.skip}, then "
            f"{config.min_queries}), found {found} ({funnel}): {advice(count)}"
        )
    rows = batched(compress(read_rows(store, queries), fates == 0))
    return write_table(store, plan.step, plan.key, QUERIES, rows, plan.provenance, counts=funnel)
