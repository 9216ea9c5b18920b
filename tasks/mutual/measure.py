"""How good a reward model is: accuracy, AUROC and calibration on solutions of held-out questions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]

from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import CALIBRATION
from infra.store.store import Store
from infra.store.tables import read_rows, write_table

BINS = 10


def auroc(probabilities: Sequence[float], right: Sequence[bool]) -> float:
    """The chance that a right solution has a higher probability than a wrong one, ties counting half (the
    Mann-Whitney statistic); NaN if all are right, or all are wrong."""
    positive = sum(right)
    negative = len(right) - positive
    if not positive or not negative:
        return math.nan
    ranks = rankdata(probabilities)
    above = float(ranks[np.asarray(right)].sum()) - positive * (positive + 1) / 2
    return above / (positive * negative)


def auroc_within(rows: Sequence[dict[str, Any]]) -> float | None:
    """The mean `auroc` of the questions that have right and wrong solutions; None if there is none.

    This is what choosing among the solutions of one question depends on. A reward model that only tells easy questions
    from hard ones has a high `auroc` over all solutions, and .5 here.
    """
    held: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        held[row["query_id"]].append(row)
    areas = [auroc([row["probability"] for row in own], [row["right"] for row in own]) for own in held.values()]
    known = [area for area in areas if not math.isnan(area)]
    return float(np.mean(known)) if known else None


def calibration(probabilities: Sequence[float], right: Sequence[bool]) -> list[dict[str, Any]]:
    """The solutions in ten bins of equal width by probability; empty bins are left out."""
    bins = [min(int(each * BINS), BINS - 1) for each in probabilities]
    rows = []
    for number in sorted(set(bins)):
        own = [n for n, each in enumerate(bins) if each == number]
        rows.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "solutions": len(own),
                "probability": float(np.mean([probabilities[n] for n in own])),
                "right": float(np.mean([right[n] for n in own])),
            }
        )
    return rows


def figures(probabilities: Sequence[float], right: Sequence[bool]) -> dict[str, float | None]:
    """Accuracy (right above one half), AUROC, and the expected calibration error: the mean distance between
    probability and share of right ones over the bins, weighted by their solutions (Guo et al., arXiv 1706.04599)."""
    rows = calibration(probabilities, right)
    error = sum(row["solutions"] * abs(row["probability"] - row["right"]) for row in rows) / len(right)
    area = auroc(probabilities, right)
    return {
        "accuracy": float(np.mean([(each > 0.5) == label for each, label in zip(probabilities, right, strict=True)])),
        "auroc": None if math.isnan(area) else area,
        "calibration_error": float(error),
        "share_right": float(np.mean(right)),
    }


def by_topic(rows: Sequence[dict[str, Any]], topics: dict[str, str | None]) -> dict[str, dict[str, float | None]]:
    """The figures of each topic, in alphabetical order; questions without a topic are left out."""
    held: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if topic := topics[row["query_id"]]:
            held[topic].append(row)
    return {
        topic: {"solutions": len(own), **figures([row["probability"] for row in own], [row["right"] for row in own])}
        for topic, own in sorted(held.items())
    }


@step
def measure_judge(plan: Plan, store: Store, *, judged: Ref, queries: Ref) -> Ref:
    """Write the table `calibration` of a reward model. `counts` has `figures`, `auroc_within`, and `by_topic` the
    figures of each topic.

    Raises:
        BadInput: no solution was judged.
    """
    rows = [row for row in read_rows(store, judged) if row["probability"] is not None]
    if not rows:
        raise BadInput(
            f"{plan.step}: none of {judged.rows} whole held-out solutions was judged: see the counts of {judged.uri}; "
            "if solutions were cut off, raise improve.generate.max_tokens"
        )
    probabilities, right = [row["probability"] for row in rows], [row["right"] for row in rows]
    topics = {row["query_id"]: row["topic"] for row in read_rows(store, queries, ["query_id", "topic"])}
    counts = {"solutions": len(rows), **figures(probabilities, right), "by_topic": by_topic(rows, topics)}
    counts["auroc_within"] = auroc_within(rows)
    made = [calibration(probabilities, right)]
    return write_table(store, plan.step, plan.key, CALIBRATION, made, plan.provenance, counts=counts)
