"""Rewarded samples, query by query, as policy gradients train on them (BOLT section 3.3 compares them with DPO)."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import SAMPLES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, scan, write_table
from infra.text.chat import load_tokenizer, prompt_text
from tasks.rewards.verify import neutral_rewards

COLUMNS = ["query_id", "sample", "text", "finish_reason", "completion_tokens"]
NO_SIGNAL = "queries without a signal: equal rewards"  # in the manifest's counts
BATCH_ROWS = 100  # all shards are open at once


@step
def group(
    plan: Plan,
    store: Store,
    *,
    iteration: int,
    responses: Sequence[Ref],
    scores: Ref,
    queries: Ref,
    model: Ref,
    servers: Servers,
) -> Ref:
    """Write the table `samples`: every sample of the iteration with its reward, those of a query side by side.

    A sample without a score (it has no solution, or is too long for the reward model) gets the lowest reward of the
    iteration, so that the policy learns to avoid such samples (this project's choice). One that the verifier had no
    verdict on gets the mean of the query's others.

    Raises:
        BadInput: no sample has a score, or all have the same.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    texts = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    found = list(read_rows(store, scores, ["query_id", "sample", "total", "verified"]))
    neutral = neutral_rewards((row["query_id"], row["verified"], row["total"]) for row in found)
    rewards = {
        (row["query_id"], row["sample"]): row["total"]
        if row["verified"] is not None
        else neutral.get(row["query_id"], row["total"])
        for row in found
    }
    lowest, highest = min(rewards.values(), default=0.0), max(rewards.values(), default=0.0)
    if not rewards:
        raise BadInput(
            f"{plan.step}: no sample of the iteration has a score, since none has a solution that the reward model can "
            "read: look at the samples; raise generate.max_tokens if they are cut, or train SFT longer"
        )
    if lowest == highest:
        raise BadInput(
            f"{plan.step}: the {len(rewards):,} scores of the iteration are all equal, so that there is nothing to "
            "learn from them: use other queries, another reward model, or a higher generate.temperature"
        )
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for query_id, samples in samples_by_query(store, responses, COLUMNS, list(texts)):
            prompt = prompt_text(tokenizer, [{"role": "user", "content": texts[query_id]}])
            made = [rewarded(row, iteration, prompt, rewards, lowest) for row in samples]
            counts["samples"] += len(made)
            counts["cut at max_tokens"] += sum(not row["ended"] for row in made)
            counts["without a score"] += sum((query_id, row["sample"]) not in rewards for row in made)
            counts["queries"] += 1
            counts[NO_SIGNAL] += len({row["reward"] for row in made}) == 1
            yield from made

    return write_table(store, plan.step, plan.key, SAMPLES, batched(rows()), plan.provenance, counts=lambda: counts)


def samples_by_query(
    store: Store,
    responses: Sequence[Ref],
    columns: Sequence[str],
    order: Sequence[str],
    wanted: Collection[tuple[str, int]] | None = None,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The samples of each query of `order`, which is also the order of each shard's rows.

    `wanted`: the only samples to take, by query id and number.
    """
    place = {query_id: number for number, query_id in enumerate(order)}

    def stream(shard: Ref) -> Iterator[dict[str, Any]]:
        for batch in scan(store, shard, columns, batch_rows=BATCH_ROWS):
            taken = (row for row in batch.to_pylist() if wanted is None or (row["query_id"], row["sample"]) in wanted)
            yield from taken

    merged = heapq.merge(*map(stream, responses), key=lambda row: place[row["query_id"]])
    for query_id, rows in groupby(merged, key=lambda row: str(row["query_id"])):
        yield query_id, list(rows)


def rewarded(
    row: Mapping[str, Any], iteration: int, prompt: str, rewards: Mapping[tuple[str, int], float], lowest: float
) -> dict[str, Any]:
    """A row of `samples`. `lowest`: the reward of a sample without a score."""
    return {
        "query_id": row["query_id"],
        "sample": row["sample"],
        "iteration": iteration,
        "prompt": prompt,
        "response": row["text"],
        "ended": row["finish_reason"] == "stop",
        "reward": rewards.get((row["query_id"], row["sample"]), lowest),
        "tokens": row["completion_tokens"],
    }
