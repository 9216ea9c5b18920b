"""Imitation, last step (STILL-2): by perplexity, then the mix of domains, as LongCoT data for SFT."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cot_formats.responses import LongFormat
from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from tasks.queries.draw import order_key, quotas
from tasks.responses.perplexity import name_of

log = logging.getLogger(__name__)

NO_TOPIC = "(none)"


class ChooseConfig(BaseModel):
    """Which of the filtered texts the policy imitates. STILL-2 gives the mix, and no other figure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_perplexity_percentile: float = Field(
        95.0,
        gt=0,
        le=100,
        description="Texts whose thoughts' perplexity under the instruct model is above this percentile are dropped; "
        "100: none, and perplexity is not measured (this project's choice).",
    )
    mix: dict[str, int] | None = Field(
        None,
        description="Maximum number of texts from each domain, {math: 3900, code: 300, ...}; domains that are not "
        "named are left out. Null: all texts. STILL-2: 3.9k of mathematics and 1k of code, science and puzzles "
        "together.",
    )
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of each domain's texts, after `mix`, that is used, drawn by `seed` (STILL-2 compares "
        "amounts of data).",
    )
    seed: int = Field(0, description="Seed of the draw within a domain.")

    @field_validator("mix")
    @classmethod
    def _some(cls, mix: dict[str, int] | None) -> dict[str, int] | None:
        if mix is not None and (min(mix.values(), default=0) < 0 or not sum(mix.values())):
            raise ValueError("the numbers of texts must be 0 or more, and one of them above 0; null uses all texts")
        return mix


def limit_of(perplexities: Sequence[float], percentile: float) -> float:
    """The perplexity above which texts are dropped; infinite if there are none."""
    return float(np.percentile(perplexities, percentile)) if len(perplexities) else float("inf")


def fates_of(
    rows: Sequence[dict[str, Any]], perplexities: dict[tuple[str, int], float], config: ChooseConfig, measured: bool
) -> list[str]:
    """The fate of each row: "kept", or why it is dropped.

    Args:
        rows: with query_id, sample and topic.
        perplexities: by query id and sample. Those of other texts do not count towards the percentile.
        measured: whether perplexities were measured; a row without one is dropped then.
    """
    own = [perplexities.get((row["query_id"], row["sample"])) for row in rows]
    limit = limit_of([each for each in own if each is not None], config.max_perplexity_percentile)
    fates = []
    for perplexity in own:
        if measured and perplexity is None:
            fates.append("dropped: perplexity not known")
        elif perplexity is not None and perplexity > limit:
            fates.append("dropped: perplexity")
        else:
            fates.append("kept")
    topics = [row["topic"] or NO_TOPIC for row in rows]
    left = Counter(topic for topic, fate in zip(topics, fates, strict=True) if fate == "kept")
    mixed = {
        topic: count if config.mix is None else min(count, config.mix.get(topic, 0)) for topic, count in left.items()
    }
    wanted = quotas(mixed, mixed, max(1, round(config.share * sum(mixed.values()))))
    taken: Counter[str] = Counter()
    order = sorted(range(len(rows)), key=lambda n: order_key(config.seed, name_of(rows[n])))
    for n in order:
        if fates[n] != "kept":
            continue
        if taken[topics[n]] < wanted.get(topics[n], 0):
            taken[topics[n]] += 1
        else:
            fates[n] = "dropped: beyond the mix"
    return fates


def check_mix(config: ChooseConfig, topics: Collection[str]) -> None:
    """Raise `BadInput` if `mix` names a domain that no query has. `topics`: those of the texts' queries."""
    if missing := sorted({*(config.mix or {})}.difference(topics)):
        raise BadInput(
            f"imitate.choose.mix names {', '.join(missing)}, but no text has such a domain: there are "
            f"{', '.join(sorted(topics))}"
        )


@step
def choose_imitated(
    plan: Plan,
    store: Store,
    *,
    config: ChooseConfig,
    distilled: Sequence[Ref],
    perplexities: Sequence[Ref],
    format: LongFormat,
) -> Ref:
    """Write the table `longcot` of the texts that are imitated. In `counts`, read = dropped + kept; and by topic.

    Args:
        distilled: filtered texts, with their solutions; continued texts without one are left out.
        perplexities: of their thoughts; none if they were not measured.

    Raises:
        BadInput: no text is kept; the message has the funnel.
    """
    found = {
        (row["query_id"], row["sample"]): row["perplexity"] for table in perplexities for row in read_rows(store, table)
    }
    columns = ["query_id", "sample", "topic", "solution"]
    topics_there, rows = set[str](), list[dict[str, Any]]()
    for row in (row for table in distilled for row in read_rows(store, table, columns)):
        topics_there.add(row["topic"] or NO_TOPIC)
        if row["solution"] is not None:
            rows.append({name: row[name] for name in columns[:3]})
    if gone := sorted({*(config.mix or {})}.difference(topics_there)):
        log.warning("%s: no text of the domain %s is left after the filters", plan.step, ", ".join(gone))
    fates = fates_of(rows, found, config, bool(perplexities))
    kept = {(row["query_id"], row["sample"]) for row, fate in zip(rows, fates, strict=True) if fate == "kept"}
    funnel = {"read": len(rows), **Counter(fates)}
    if not kept:
        raise BadInput(
            f"{plan.step}: no text is left ({funnel}): relax the limits, or "
            "choose.share, or name other domains in choose.mix"
        )
    topics = Counter(row["topic"] or NO_TOPIC for row in rows if (row["query_id"], row["sample"]) in kept)
    counts = {**funnel, "topics": dict(topics.most_common()), "wanted": config.mix}

    def longcot() -> Iterator[dict[str, Any]]:
        for row in (row for table in distilled for row in read_rows(store, table)):
            if (row["query_id"], row["sample"]) in kept and row["solution"] is not None:
                yield longcot_row(row, format)

    return write_table(store, plan.step, plan.key, LONGCOT, batched(longcot()), plan.provenance, counts=counts)


def longcot_row(row: dict[str, Any], format: LongFormat) -> dict[str, Any]:
    """A row of `longcot`; another model's text has no reward."""
    taken = {name: row[name] for name in ("query_id", "sample", "query", "thoughts", "solution")}
    return {**taken, "format": format, "reward": 0.0}
