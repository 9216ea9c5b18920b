"""Preference pairs of STILL-1: of a query's samples, the right one that the reward model finds likeliest to be right,
against the wrong one that it finds likeliest to be right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import PAIRS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import load_tokenizer
from tasks.mutual.adapt import StepFormat
from tasks.rewards.pair import pair_rows


class OutcomePairConfig(BaseModel):
    """Which of a query's samples become a preference pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(
        4_096, ge=1, description="Maximum length of a response, in tokens; a longer one is neither chosen nor rejected."
    )
    min_probability: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The chosen sample's probability of being right must be above it: the authors filter by the reward "
        "model, and state no figure (this project's choice).",
    )


def choose(
    samples: Sequence[dict[str, Any]], config: OutcomePairConfig, funnel: Counter[str]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The (chosen, rejected) samples of a query, or None; `funnel` counts why. Ties go to the lowest sample number.

    `samples`: with right, total (the probability), sample and completion_tokens.
    """
    funnel["queries"] += 1
    fitting = [row for row in samples if row["completion_tokens"] <= config.max_tokens]
    right = [row for row in fitting if row["right"] and row["total"] > config.min_probability]
    wrong = [row for row in fitting if not row["right"]]
    if not right or not wrong:
        funnel["dropped: no right sample" if not right else "dropped: no wrong sample"] += 1
        return None
    funnel["kept"] += 1
    best, worst = (min(side, key=lambda row: (-row["total"], row["sample"])) for side in (right, wrong))
    return best, worst


@step
def pair_outcomes(
    plan: Plan,
    store: Store,
    *,
    config: OutcomePairConfig,
    format: StepFormat,
    iteration: int,
    responses: Sequence[Ref],
    judged: Ref,
    queries: Ref,
    model: Ref,
    servers: Servers,
) -> Ref:
    """Write the table `pairs`; there may be none. A chosen sample is in the step format.

    `judged` lacks the samples that were cut off.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    texts = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    known = {
        (row["query_id"], row["sample"]): (row["right"], row["probability"])
        for row in read_rows(store, judged)
        if row["probability"] is not None
    }
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    funnel: Counter[str] = Counter()
    columns = ["query_id", "sample", "solution", "completion_tokens"]
    for shard in responses:
        for row in read_rows(store, shard, columns):
            if (found := known.get((row["query_id"], row["sample"]))) is None:
                funnel["samples cut at max_tokens, or not judged"] += 1
            elif found[0] and not format.steps.parse(row["solution"]).ok:
                funnel["right samples not in the step format"] += 1
            else:
                plain = {"sample": row["sample"], "completion_tokens": row["completion_tokens"]}
                samples[row["query_id"]].append({**plain, "right": found[0], "total": found[1]})
    choices = {query_id: choose(samples[query_id], config, funnel) for query_id in texts}
    paired = {query_id: both for query_id, both in choices.items() if both}
    rows = pair_rows(store, paired, iteration, responses, texts, tokenizer)
    return write_table(store, plan.step, plan.key, PAIRS, batched(rows), plan.provenance, counts=dict(funnel))
