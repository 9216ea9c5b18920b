"""Selection (BOLT section 3.1.3): drop scores below the 30th percentile, then keep the best response of each query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from infra.chat import generation_prefix, load_tokenizer, prompt_text
from infra.manifest import Ref
from infra.models import fetch_model
from infra.schemas import LONGCOT
from infra.servers import Servers
from infra.steps import Plan, step
from infra.store import Store
from infra.tables import batched, read_rows, scan, write_table
from tasks.responses import LongFormat, continuation, opened_part


class SelectConfig(BaseModel):
    """Which responses are learned from, and in which format."""

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


def best_of_each(scores: Iterable[dict[str, Any]], least: float) -> dict[str, dict[str, Any]]:
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
    best = best_of_each(read_rows(store, scores, ["query_id", "sample", "reward"]), least)
    asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    opened = opened_part(generation_prefix(tokenizer), config.format)
    tally: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for row in read_rows(store, responses, ["query_id", "sample", "thoughts", "solution"]):
            held = best.get(row["query_id"])
            if held is None or held["sample"] != row["sample"]:
                continue
            tally["kept"] += 1
            rendered = FORMATS[config.format].render(row["thoughts"], row["solution"])
            yield {
                "query_id": row["query_id"],
                "sample": row["sample"],
                "prompt": prompt_text(tokenizer, [{"role": "user", "content": asked[row["query_id"]]}]),
                "completion": continuation(rendered, opened),
                "reward": held["reward"],
            }

    def counts() -> dict[str, Any]:
        below = sum(row["reward"] < least for row in read_rows(store, scores, ["reward"]))
        beaten = scores.rows - below - tally["kept"]
        shown = {"scored": scores.rows, "below the percentile": below, "not the best of its query": beaten}
        return {**shown, "kept": tally["kept"], "threshold": least}

    return write_table(store, plan.step, plan.key, LONGCOT, batched(rows()), plan.provenance, counts=counts)
