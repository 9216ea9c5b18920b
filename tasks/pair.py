"""Preference pairs (BOLT section 3.3): of each query's samples the highest scored is chosen, the lowest rejected."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.chat import load_tokenizer, prompt_text
from infra.manifest import Ref
from infra.models import fetch_model
from infra.schemas import PAIRS
from infra.servers import Servers
from infra.steps import Plan, step
from infra.store import Store
from infra.tables import read_rows, write_table


class PairConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    least_samples: int = Field(4, ge=2, description="Scored samples that a query must have (this project's choice).")
    least_margin: float = Field(
        0.0, ge=0, description="Score differences up to this carry no signal: the pair is dropped."
    )
    max_tokens: int = Field(
        16384, ge=1, description="Longest response of a pair, in tokens; a longer one drops the pair."
    )


def choose(
    scored: list[dict[str, Any]], config: PairConfig, funnel: Counter[str]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A query's (chosen, rejected), or None; `funnel` counts why. Ties go to the lowest sample number."""
    funnel["queries"] += 1
    if len(scored) < config.least_samples:
        funnel["dropped: too few scored samples"] += 1
        return None
    chosen = min(scored, key=lambda row: (-row["total"], row["sample"]))
    rejected = min(scored, key=lambda row: (row["total"], row["sample"]))
    if chosen["total"] - rejected["total"] <= config.least_margin:
        funnel["dropped: equal scores"] += 1
    elif max(chosen["completion_tokens"], rejected["completion_tokens"]) > config.max_tokens:
        funnel["dropped: too long"] += 1
    else:
        funnel["kept"] += 1
        return chosen, rejected
    return None


@step
def pair(
    plan: Plan,
    store: Store,
    *,
    config: PairConfig,
    iteration: int,
    responses: Sequence[Ref],
    scores: Ref,
    queries: Ref,
    model: Ref,
    servers: Servers,
) -> Ref:
    """Write the table `pairs`. The texts are the samples as they were drawn: the loss covers thoughts and solution."""
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    totals = {(row["query_id"], row["sample"]): row["total"] for row in read_rows(store, scores)}
    by_query: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for shard in responses:
        for row in read_rows(store, shard, ["query_id", "sample", "text", "completion_tokens"]):
            total = totals.get((row["query_id"], row["sample"]))
            if total is not None:
                by_query[row["query_id"]].append({**row, "total": total})
    funnel: Counter[str] = Counter()
    rows = []
    for query in read_rows(store, queries, ["query_id", "query"]):
        chosen_rejected = choose(by_query[query["query_id"]], config, funnel)
        if chosen_rejected is not None:
            chosen, rejected = chosen_rejected
            rows.append(
                {
                    "query_id": query["query_id"],
                    "iteration": iteration,
                    "prompt": prompt_text(tokenizer, [{"role": "user", "content": query["query"]}]),
                    "chosen": chosen["text"],
                    "rejected": rejected["text"],
                    "chosen_sample": chosen["sample"],
                    "rejected_sample": rejected["sample"],
                    "chosen_score": chosen["total"],
                    "rejected_score": rejected["total"],
                    "chosen_tokens": chosen["completion_tokens"],
                    "rejected_tokens": rejected["completion_tokens"],
                }
            )
    return write_table(store, plan.step, plan.key, PAIRS, [rows], plan.provenance, counts=dict(funnel))
