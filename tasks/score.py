"""Reward scoring: the outcome reward model on (query, solution), plus a rule-based format reward (BOLT 3.1.3 and 3.3).

The thoughts never reach the reward model: no reward model for them exists.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.chat import load_tokenizer, neutralise
from infra.completions import classify
from infra.manifest import Ref
from infra.models import fetch_model
from infra.progress import progress
from infra.schemas import SCORES
from infra.servers import Servers
from infra.steps import Plan, step
from infra.store import Store
from infra.tables import read_rows, scan, write_table
from tasks.responses import is_well_formed


class ScoreConfig(BaseModel):
    """How responses are scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_weight: float = Field(
        1.0, ge=0, description="Added to a well-formed response's reward (BOLT adds one; its weight is not stated)."
    )
    in_flight: int = Field(64, ge=1, description="Scoring requests under way at once.")


def judged_ids(tokenizer: Any, query: str, solution: str) -> list[int]:
    """What the reward model reads: the query and the solution in its own chat template, as token ids."""
    messages = [
        {"role": "user", "content": neutralise(query, tokenizer)},
        {"role": "assistant", "content": neutralise(solution, tokenizer)},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@step
def score(
    plan: Plan,
    store: Store,
    *,
    config: ScoreConfig,
    responses: Sequence[Ref],
    queries: Ref,
    reward_model: Ref,
    servers: Servers,
) -> Ref:
    """Write the table `scores`: a row for each response that has a solution; those without one are counted."""
    tokenizer = load_tokenizer(fetch_model(store, reward_model, servers.work_dir))
    asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    counts = {"scored": 0, "without a solution": 0}
    total = max(1, sum(shard.rows for shard in responses))

    def batches() -> Iterator[list[dict[str, Any]]]:
        server = servers.reward(reward_model)
        for shard in responses:
            for batch in scan(store, shard, ["query_id", "sample", "solution", "violations", "finish_reason"]):
                rows = [row for row in batch.to_pylist() if row["solution"]]
                ids = [judged_ids(tokenizer, asked[row["query_id"]], row["solution"]) for row in rows]
                rewards = asyncio.run(
                    classify(server.url, server.served_name, ids, max_in_flight=config.in_flight, alive=server.check)
                )
                counts["without a solution"] += batch.num_rows - len(rows)
                counts["scored"] += len(rows)
                yield [scored(row, reward, plan, config) for row, reward in zip(rows, rewards, strict=True)]

    with progress(plan.step, lambda: sum(counts.values()) / total):
        return write_table(store, plan.step, plan.key, SCORES, batches(), plan.provenance, counts=lambda: counts)


def scored(row: dict[str, Any], reward: float, plan: Plan, config: ScoreConfig) -> dict[str, Any]:
    if not math.isfinite(reward):
        raise ValueError(
            f"{plan.step}: the reward model gave {reward} for query {row['query_id']}, sample {row['sample']}"
        )
    format_reward = config.format_weight if is_well_formed(row) else 0.0
    return {
        "query_id": row["query_id"],
        "sample": row["sample"],
        "reward_model": plan.provenance.inputs["reward_model"].key,
        "reward": reward,
        "format_reward": format_reward,
        "total": reward + format_reward,
    }
