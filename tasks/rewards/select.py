"""Selection (BOLT section 3.1.3): drop scores below the 30th percentile, then keep the best response of each query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from sys import intern
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from cot_formats.responses import LongFormat, continuation, opened_part
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import batched, read_rows, scan, write_table
from infra.text.chat import generation_prefix, load_tokenizer, prompt_text

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Integers: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]
BINS = 60
LENGTHS = ("thought_tokens", "solution_tokens")


class SelectConfig(BaseModel):
    """Which responses are learned from, and in which format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    percentile: float = Field(30.0, ge=0, le=100, description="Scores below this percentile are dropped (BOLT: 30).")
    format: LongFormat = Field("bolt", description="LongCoT format that the policy is trained to write.")


def sort_keys(values: Floats) -> Integers:
    """Unsigned integers in the order of finite floats: all bits turned over in negative ones, else the sign bit."""
    bits = values.view(np.uint64)
    return np.where(bits >> 63, ~bits, bits | np.uint64(1 << 63))


def order_statistics(stream: Callable[[], Iterable[Floats]], ranks: Sequence[int]) -> list[float]:
    """The values that stand at `ranks` (from 0) among all that the stream holds, once sorted; ranks must exist.

    Exact, in four passes over the stream and half a MiB a rank, however many values there are: each pass counts the
    next 16 bits of the values that agree with what is known of the one that is looked for.
    """
    known = dict.fromkeys(ranks, 0)  # the leading bits of each rank's key
    left = {rank: rank for rank in ranks}  # the rank among the values that agree with them
    for shift in (48, 32, 16, 0):
        tallies = {prefix: np.zeros(1 << 16, dtype=np.int64) for prefix in known.values()}
        for values in stream():
            keys = sort_keys(values)
            for prefix, tally in tallies.items():
                agree = keys if shift == 48 else keys[keys >> np.uint64(shift + 16) == prefix]
                tally += np.bincount(
                    (agree >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16
                )
        for rank in known:
            upto = np.cumsum(tallies[known[rank]])
            digit = int(np.searchsorted(upto, left[rank], side="right"))
            left[rank] -= int(upto[digit - 1]) if digit else 0
            known[rank] = known[rank] << 16 | digit
    keys = np.array([known[rank] for rank in ranks], dtype=np.uint64)
    values = np.where(keys >> 63, keys ^ np.uint64(1 << 63), ~keys).view(np.float64)
    return [float(value) for value in values]


def percentile_of(stream: Callable[[], Iterable[Floats]], count: int, percentile: float) -> float:
    """The percentile by linear interpolation, as `numpy.percentile` gives it, of the `count` values of a stream."""
    place = (count - 1) * (percentile / 100)
    below = int(place)
    low, high = order_statistics(stream, [below, min(below + 1, count - 1)])
    share = place - below
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def threshold(store: Store, scores: Ref, percentile: float) -> float:
    """The exact percentile (linear interpolation) over all rewards, which are read four times and never held.

    Raises:
        ValueError: there is nothing to select from.
    """
    if not scores.rows:
        raise ValueError(f"{scores.uri} holds no scores: no response had a solution; its inputs' manifests count why")
    return percentile_of(lambda: rewards(store, scores), scores.rows, percentile)


def rewards(store: Store, scores: Ref) -> Iterator[Floats]:
    """The reward of every scored sample, batch by batch."""
    for batch in scan(store, scores, ["reward"]):
        yield batch.column("reward").to_numpy()


def histogram(store: Store, scores: Ref) -> dict[str, list[Any]]:
    """How the rewards are spread: `BINS` bins of equal width over their range, as `numpy.histogram` has them.

    Returns `edges`, one more than bins, and `samples`, the number in each.
    """
    low = min(float(values.min()) for values in rewards(store, scores))
    high = max(float(values.max()) for values in rewards(store, scores))
    edges = np.histogram_bin_edges(np.array([low, high]), bins=BINS)
    samples = sum((np.histogram(values, bins=edges)[0] for values in rewards(store, scores)), np.zeros(BINS, int))
    return {"edges": edges.tolist(), "samples": samples.tolist()}


def best_of_each(scores: Iterable[dict[str, Any]], least: float) -> dict[str, dict[str, Any]]:
    """The highest-scored row a query, of those not below `least`; ties go to the lowest sample number.

    Holds one row a query."""
    best: dict[str, dict[str, Any]] = {}
    for row in scores:
        held = best.get(row["query_id"])
        better = held is None or (-row["reward"], row["sample"]) < (-held["reward"], held["sample"])
        if row["reward"] >= least and better:
            best[row["query_id"]] = row
    return best


@step
def select(
    plan: Plan,
    store: Store,
    *,
    config: SelectConfig,
    responses: Ref,
    scores: Ref,
    queries: Ref,
    model: Ref,
    servers: Servers,
) -> Ref:
    """Write the table `longcot`: the chat prompt of each query kept, and its best response in canonical form.

    The manifest tells what the data set is made of: rewards, lengths, topics and sources of the rows kept.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    least = threshold(store, scores, config.percentile)
    best = best_of_each(read_rows(store, scores, ["query_id", "sample", "reward"]), least)
    columns = ["query_id", "query", "topic", "source"]
    asked = {
        row["query_id"]: (row["query"], intern(row["topic"] or ""), intern(row["source"]))
        for row in read_rows(store, queries, columns)
        if row["query_id"] in best
    }
    opened = opened_part(generation_prefix(tokenizer), config.format)
    kept: dict[str, list[float]] = {name: [] for name in ("reward", *LENGTHS)}
    topics: Counter[str] = Counter()
    sources: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        columns = ["query_id", "sample", "thoughts", "solution", *LENGTHS]
        batches = scan(store, responses, columns, batch_rows=250)
        for row in (row for batch in batches for row in batch.to_pylist()):
            held = best.get(row["query_id"])
            if held is None or held["sample"] != row["sample"]:
                continue
            query, topic, source = asked[row["query_id"]]
            topics[topic] += 1
            sources[source] += 1
            for name, values in kept.items():
                values.append(held["reward"] if name == "reward" else row[name])
            rendered = FORMATS[config.format].render(row["thoughts"], row["solution"])
            yield {
                "query_id": row["query_id"],
                "sample": row["sample"],
                "prompt": prompt_text(tokenizer, [{"role": "user", "content": query}]),
                "completion": continuation(rendered, opened),
                "reward": held["reward"],
            }

    def counts() -> dict[str, Any]:
        below = sum(int((values < least).sum()) for values in rewards(store, scores))
        beaten = scores.rows - below - len(kept["reward"])
        shown = {"scored": scores.rows, "below the percentile": below, "not the best of its query": beaten}
        figures = {name: spread(values) for name, values in kept.items()}
        made_of = {"topics": dict(topics.most_common()), "sources": dict(sources.most_common())}
        told = {"threshold": least, "rewards": histogram(store, scores), "of those kept": figures}
        return {**shown, "kept": len(kept["reward"]), **told, **made_of}

    return write_table(store, plan.step, plan.key, LONGCOT, batched(rows()), plan.provenance, counts=counts)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and percentiles of figures, by name; nothing of none."""
    if not values:
        return {}
    shares = {"5 %": 5, "median": 50, "95 %": 95, "most": 100}
    return {"mean": float(np.mean(values))} | {name: float(np.percentile(values, q)) for name, q in shares.items()}
