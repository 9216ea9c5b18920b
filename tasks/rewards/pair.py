"""Preference pairs (BOLT section 3.3): of each query's samples, the best is chosen and the worst rejected, by score."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import PAIRS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import load_tokenizer, prompt_text
from tasks.rewards.group import samples_by_query


class PairConfig(BaseModel):
    """Which of a query's samples become a preference pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_samples: int = Field(4, ge=2, description="Minimum number of scored samples per query (this project's choice).")
    min_margin: float = Field(
        0.0, ge=0, description="A pair whose scores differ by this or less is dropped: it carries no signal."
    )
    boundary: float | None = Field(
        None,
        description="If set, the chosen sample's reward must be above it and the rejected one's below: 0 for a reward "
        "model trained on correct and wrong outcomes (this project's choice; the paper has no such rule). Null: off.",
    )
    max_tokens: int = Field(
        16384, ge=1, description="Maximum length of a response, in tokens; a pair with a longer one is dropped."
    )


def choose(
    scored: list[dict[str, Any]], config: PairConfig, funnel: Counter[str]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The (chosen, rejected) samples of a query, or None; `funnel` counts why. Ties go to the lowest sample number.

    A truncated sample can be neither: training ends every completion with an end token, which it never reached. Nor can
    one that the verifier had no verdict on, where it had one on others: it is neither right nor wrong.
    """
    if any(row["verified"] is not None for row in scored):  # the query has a reference
        judged = [row for row in scored if row["verified"] is not None]
        funnel["samples without a verdict"] += len(scored) - len(judged)
        scored = judged
    ended = [row for row in scored if row["finish_reason"] == "stop"]
    funnel["queries"] += 1
    funnel["samples cut at max_tokens"] += len(scored) - len(ended)
    if len(ended) < config.min_samples:
        funnel["dropped: too few scored samples"] += 1
        return None
    chosen = min(ended, key=lambda row: (-row["total"], row["sample"]))
    rejected = min(ended, key=lambda row: (row["total"], row["sample"]))
    if chosen["total"] - rejected["total"] <= config.min_margin:
        funnel["dropped: equal scores"] += 1
    elif config.boundary is not None and not chosen["reward"] > config.boundary > rejected["reward"]:
        funnel["dropped: same side of the boundary"] += 1
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
    """Write the table `pairs`. Its texts are the samples as generated: the loss covers thoughts and solution.

    Pairs are chosen without reading the texts, which are then streamed, so that memory does not grow with them.

    Raises:
        BadInput: there is no pair at all.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    query_texts = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    columns = ["query_id", "sample", "reward", "total", "verified"]
    rewards = {
        (row["query_id"], row["sample"]): (row["reward"], row["total"], row["verified"])
        for row in read_rows(store, scores, columns)
    }
    scored: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for shard in responses:
        for row in read_rows(store, shard, ["query_id", "sample", "finish_reason", "completion_tokens"]):
            query_id = row.pop("query_id")
            if found := rewards.get((query_id, row["sample"])):
                scored[query_id].append({**row, "reward": found[0], "total": found[1], "verified": found[2]})
    funnel: Counter[str] = Counter()
    choices = {query_id: choose(scored[query_id], config, funnel) for query_id in query_texts}
    paired = {query_id: both for query_id, both in choices.items() if both}
    if not paired:
        raise BadInput(
            f"{plan.step}: no query gives a preference pair ({dict(funnel)}): use more samples or queries, or relax "
            "pair.boundary, pair.min_margin or pair.min_samples"
        )

    rows = pair_rows(store, paired, iteration, responses, query_texts, tokenizer)
    return write_table(store, plan.step, plan.key, PAIRS, batched(rows), plan.provenance, counts=dict(funnel))


def pair_rows(
    store: Store,
    paired: Mapping[str, tuple[dict[str, Any], dict[str, Any]]],
    iteration: int,
    responses: Sequence[Ref],
    queries: Mapping[str, str],
    tokenizer: Any,
) -> Iterator[dict[str, Any]]:
    """The rows of `pairs`; the texts of the responses are streamed.

    Args:
        paired: the chosen and the rejected sample by query id, each with sample, total and completion_tokens.
        queries: the texts of all queries by id, in the order of each shard's rows.
    """
    wanted = {(query_id, row["sample"]) for query_id, both in paired.items() for row in both}
    columns = ["query_id", "sample", "text"]
    for query_id, samples in samples_by_query(store, responses, columns, list(queries), wanted):
        texts = {row["sample"]: row["text"] for row in samples}
        chosen, rejected = paired[query_id]
        yield {
            "query_id": query_id,
            "iteration": iteration,
            "prompt": prompt_text(tokenizer, [{"role": "user", "content": queries[query_id]}]),
            "chosen": texts[chosen["sample"]],
            "rejected": texts[rejected["sample"]],
            "chosen_sample": chosen["sample"],
            "rejected_sample": rejected["sample"],
            "chosen_score": chosen["total"],
            "rejected_score": rejected["total"],
            "chosen_tokens": chosen["completion_tokens"],
            "rejected_tokens": rejected["completion_tokens"],
        }
