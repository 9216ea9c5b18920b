"""Preference pairs of thoughts (STILL-2): right ones of high perplexity against wrong ones of low perplexity.

The thoughts that the policy finds unlikely although they are right, and those that it finds likely although they are
wrong, are where it has most to learn. The loss covers the thoughts alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from cot_formats.responses import LongFormat, continuation, opened_part, unfinished
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import PAIRS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import generation_prefix, load_tokenizer, prompt_text


def choose(rollouts: Sequence[dict[str, Any]], funnel: Counter[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The (chosen, rejected) rollouts of a problem, or None; `funnel` counts why. Ties go to the lowest number.

    Both have thoughts of their own: where only the solutions differ, the thoughts have nothing to learn from.

    `rollouts`: with sample, correct, perplexity and thoughts, or a digest of them.
    """
    funnel["problems"] += 1
    sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in rollouts:
        sides[row["correct"]].append(row)
    for is_right, missing in ((True, "dropped: no right rollout"), (False, "dropped: no wrong rollout")):
        if not sides[is_right]:
            funnel[missing] += 1
            return None
    right = sorted(sides[True], key=lambda row: (-row["perplexity"], row["sample"]))
    wrong = sorted(sides[False], key=lambda row: (row["perplexity"], row["sample"]))
    pairs = ((chosen, rejected) for chosen in right for rejected in wrong if chosen["thoughts"] != rejected["thoughts"])
    found = next(pairs, None)
    funnel["kept" if found else "dropped: same thoughts"] += 1
    return found


@step
def pair_thoughts(
    plan: Plan,
    store: Store,
    *,
    iteration: int,
    explored: Sequence[Ref],
    perplexities: Sequence[Ref],
    shards: int,
    queries: Ref,
    format: LongFormat,
    model: Ref,
    servers: Servers,
) -> Ref:
    """Write the table `pairs`: of each problem the thoughts of a right and of a wrong rollout, up to their solutions.

    The scores are perplexities under the policy that wrote the rollouts.

    Args:
        explored: the rollouts of one round each.
        perplexities: of their thoughts: the `shards` of the first round, then those of the second, ...

    The table is empty if no problem has both right and wrong rollouts.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    opened = opened_part(generation_prefix(tokenizer), format)
    asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    funnel: Counter[str] = Counter()
    choices: dict[tuple[int, str], tuple[dict[str, Any], dict[str, Any]]] = {}
    for number, table in enumerate(explored):
        own = perplexities[number * shards : (number + 1) * shards]
        measured = {
            (row["query_id"], row["sample"]): row["perplexity"] for each in own for row in read_rows(store, each)
        }
        rollouts: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in read_rows(store, table, ["query_id", "sample", "correct", "thought_tokens", "thoughts"]):
            row["thoughts"] = hashlib.sha256(row["thoughts"].encode()).digest()  # all texts would not fit in memory
            perplexity = measured.get((row["query_id"], row["sample"]))
            if perplexity is None:
                funnel["rollouts without a perplexity"] += 1
            else:
                rollouts[row["query_id"]].append({**row, "perplexity": perplexity})
        for query_id, tried in rollouts.items():
            if both := choose(tried, funnel):
                choices[number, query_id] = both

    def rows() -> Iterator[dict[str, Any]]:
        for number, table in enumerate(explored):
            wanted = {
                (each["query_id"], each["sample"]) for (n, _), both in choices.items() if n == number for each in both
            }
            texts = {
                (row["query_id"], row["sample"]): continuation(unfinished(format, row["thoughts"]), opened)
                for row in read_rows(store, table, ["query_id", "sample", "thoughts"])
                if (row["query_id"], row["sample"]) in wanted
            }
            for (n, query_id), (chosen, rejected) in choices.items():
                if n != number:
                    continue
                yield {
                    "query_id": query_id,
                    "iteration": iteration,
                    "prompt": prompt_text(tokenizer, [{"role": "user", "content": asked[query_id]}]),
                    "chosen": texts[query_id, chosen["sample"]],
                    "rejected": texts[query_id, rejected["sample"]],
                    "chosen_sample": chosen["sample"],
                    "rejected_sample": rejected["sample"],
                    "chosen_score": chosen["perplexity"],
                    "rejected_score": rejected["perplexity"],
                    "chosen_tokens": chosen["thought_tokens"],
                    "rejected_tokens": rejected["thought_tokens"],
                }

    return write_table(store, plan.step, plan.key, PAIRS, batched(rows()), plan.provenance, counts=dict(funnel))
