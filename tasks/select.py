"""Selection (BOLT section 3.1.3): drop scores below the 30th percentile, then keep the best response of each query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from infra.chat import load_tokenizer, prompt_text
from infra.manifest import Ref
from infra.models import fetch_model
from infra.schemas import LONGCOT
from infra.servers import Servers
from infra.steps import Plan, step
from infra.store import Store
from infra.tables import read_rows, scan, write_table
from tasks.responses import LongFormat


class SelectConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    percentile: float = Field(30.0, ge=0, le=100, description="Scores below this percentile are dropped (BOLT: 30).")
    format: LongFormat = Field("bolt", description="LongCoT format that the policy is trained to write.")


def threshold(store: Store, scores: Ref, percentile: float) -> float:
    """The exact percentile (linear interpolation) over all rewards; 8 bytes a row in memory.

    Raises:
        ValueError: there is nothing to select from.
    """
    if not scores.rows:
        raise ValueError(f"{scores.uri} holds no scores: no response had a solution; its inputs' manifests count why")
    rewards = np.concatenate([batch.column("reward").to_numpy() for batch in scan(store, scores, ["reward"])])
    return float(np.percentile(rewards, percentile))


def best_of_each(scores: Sequence[dict[str, Any]], least: float) -> dict[str, dict[str, Any]]:
    """The highest-scored row a query, of those not below `least`; ties go to the lowest sample number."""
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
    """Write the table `longcot`: the chat prompt of each query kept, and its best response in canonical form."""
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    least = threshold(store, scores, config.percentile)
    best = best_of_each(list(read_rows(store, scores, ["query_id", "sample", "reward"])), least)
    asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    rows = [
        {
            "query_id": row["query_id"],
            "sample": row["sample"],
            "prompt": prompt_text(tokenizer, [{"role": "user", "content": asked[row["query_id"]]}]),
            "completion": FORMATS[config.format].render(row["thoughts"], row["solution"]),
            "reward": best[row["query_id"]]["reward"],
        }
        for row in read_rows(store, responses, ["query_id", "sample", "thoughts", "solution"])
        if row["query_id"] in best and best[row["query_id"]]["sample"] == row["sample"]
    ]
    below = sum(row["reward"] < least for row in read_rows(store, scores, ["reward"]))
    beaten = scores.rows - below - len(rows)
    counts = {"scored": scores.rows, "below the percentile": below, "not the best of its query": beaten}
    counts |= {"kept": len(rows), "threshold": least}
    return write_table(store, plan.step, plan.key, LONGCOT, [rows], plan.provenance, counts=counts)
