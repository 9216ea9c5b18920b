"""Filtering of another model's texts (STILL-2): duplicates, gibberish, repetition, mixed languages, too short."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from cot_formats.responses import LongFormat
from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import DISTILLED
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from tasks.imitation.ngrams import known_trigrams, unusual_share
from tasks.responses.filter import FilterConfig, reason_to_drop

LEAST_TEXTS = 20
"""Fewer texts say too little of how letters follow each other."""
PLACEHOLDER = "."  # stands for the solution that a continued text has not got yet


class DistilledFilter(FilterConfig):
    """Which texts of another model are dropped; malformed ones always are."""

    copied_words: None = Field(None, description="Off: there are no in-context examples that could be copied.")
    max_thought_tokens: int | None = Field(
        None, ge=1, description="Maximum length of the thoughts, in tokens; longer ones are dropped. Null: off."
    )
    max_unusual_share: float | None = Field(
        0.35,
        ge=0,
        le=1,
        description="Largest share of runs of three letters that no other text of the set has; more is gibberish. "
        "Without effect on fewer than 20 texts. Null: off. STILL-2 names n-grams, but no figure.",
    )


def fingerprint(row: dict[str, Any]) -> bytes:
    """Equal for texts that differ in white space or case only, whatever their query."""
    text = f"{row['thoughts']} {row['solution']}".lower()
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[:16]


def text_of(row: dict[str, Any]) -> str:
    """All that another model wrote."""
    return f"{row['thoughts'] or ''}\n{row['solution'] or ''}"


def known_in(store: Store, distilled: Ref) -> set[str] | None:
    """The trigrams that two or more different texts of the table have; None if there are too few texts."""
    seen: set[bytes] = set()

    def different() -> Iterator[str]:
        for row in read_rows(store, distilled):
            if (mark := fingerprint(row)) not in seen:
                seen.add(mark)
                yield text_of(row)

    known = known_trigrams(different())
    return known if len(seen) >= LEAST_TEXTS else None


@step
def filter_distilled(
    plan: Plan, store: Store, *, config: DistilledFilter, target: LongFormat, distilled: Ref, may_be_empty: bool = False
) -> Ref:
    """Write the texts that no rule drops, as a table `distilled`. In `counts`, read = dropped + kept, by source too.

    Args:
        target: the format that the policy is trained to write, in which a text must be renderable.
        may_be_empty: whether there are other texts to imitate, so that the table may be empty.

    Raises:
        BadInput: no text is kept, and the table may not be empty; the message has the funnel.
    """
    funnel: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    known = known_in(store, distilled) if config.max_unusual_share is not None else None
    seen: set[bytes] = set()

    def reason(row: dict[str, Any]) -> str | None:
        whole = {**row, "finish_reason": "stop"}
        if row["continued"] and row["solution"] is None and not row["violations"]:
            whole["solution"] = PLACEHOLDER
        if found := reason_to_drop(whole, row["query"], [], config, target):
            return found
        if config.max_thought_tokens is not None and row["thought_tokens"] > config.max_thought_tokens:
            return "too long"
        if known is not None and unusual_share(text_of(row), known) > (config.max_unusual_share or 0):
            return "gibberish"
        mark = fingerprint(row)
        if mark in seen:
            return "duplicate"
        seen.add(mark)
        return None

    def kept() -> Iterator[dict[str, Any]]:
        for row in read_rows(store, distilled):
            found = reason(row)
            for counter in (funnel, sources.setdefault(row["source"], Counter())):
                counter["read"] += 1
                counter[f"dropped: {found}" if found else "kept"] += 1
            if found is None:
                yield row
        if not funnel["kept"] and not may_be_empty:
            raise BadInput(f"{plan.step}: no text is left ({dict(funnel)}): relax the rules, or correct the sources")

    def counts() -> dict[str, Any]:
        return {**funnel, "sources": {name: dict(counter) for name, counter in sources.items()}}

    return write_table(store, plan.step, plan.key, DISTILLED, batched(kept()), plan.provenance, counts=counts)
