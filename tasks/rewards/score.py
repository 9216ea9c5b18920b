"""Reward scoring: the outcome reward model on (query, solution), plus a rule-based format reward (BOLT 3.1.3 and 3.3).

Where a query has a reference answer, whether the solution gives it may count too (this project's option).

The thoughts never reach the reward model: no reward model for them exists.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cot_formats.responses import is_well_formed
from infra.errors import BadInput
from infra.processes.limited import Limited, NoResult
from infra.serving.armorm import ArmoConfig, gate_position, is_armorm, part_count, rewards_path, score_parts, write_part
from infra.serving.completions import classify
from infra.serving.servers import Servers
from infra.steps.progress import progress
from infra.steps.step import Plan, step
from infra.store.manifest import Ref, expect
from infra.store.models import fetch_model
from infra.store.schemas import SCORES
from infra.store.store import Store
from infra.store.tables import read_rows, scan, write_table
from infra.text.chat import load_tokenizer, neutralise
from tasks.evaluation.grade import MEMORY_BYTES, TIMEOUT_S

Rows = list[dict[str, Any]]
COLUMNS = ["query_id", "sample", "solution", "violations", "finish_reason"]


class ScoreConfig(BaseModel):
    """How responses are scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_weight: float = Field(
        1.0, ge=0, description="Added to a well-formed response's reward (BOLT adds one; its weight is not stated)."
    )
    verified_weight: float = Field(
        0.0,
        ge=0,
        description="Added where the solution gives the query's reference answer, by math-verify; queries without one "
        "get nothing (this project's option; BOLT has none).",
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
    """Write the table `scores`: a row for each response that has a solution; those without one are counted.

    ArmoRM is scored with by a process of its own, every other reward model by the vLLM server.

    Raises:
        infra.serving.completions.CompletionError: the server refused a request.
        infra.serving.vllm_server.ServerError: the server died.
        infra.processes.torchrun.TrainerError: ArmoRM's process failed.
    """
    model = fetch_model(store, reward_model, servers.work_dir)
    tokenizer = load_tokenizer(model)
    asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    references = references_of(store, queries) if config.verified_weight else {}
    counts = {"scored": 0, "without a solution": 0} | ({"verified": 0, "right": 0} if references else {})
    total = max(1, sum(shard.rows for shard in responses))
    parts = servers.work_dir / "scoring" / f"{plan.step}-{plan.key}"

    def pieces() -> Iterator[tuple[int, Rows]]:
        """The responses that have a solution, a batch at a time, each with the number of those that have none."""
        for shard in responses:
            for batch in scan(store, shard, COLUMNS):
                rows = [row for row in batch.to_pylist() if row["solution"]]
                yield batch.num_rows - len(rows), rows

    def judged(rows: Rows) -> list[tuple[str, str]]:
        """Samples of a query that end in the same solution get the same reward: asked once a batch."""
        return list(dict.fromkeys((row["query_id"], row["solution"]) for row in rows))

    def batches() -> Iterator[Rows]:
        ids = (
            [judged_ids(tokenizer, asked[each], solution) for each, solution in judged(rows)] for _, rows in pieces()
        )
        native = is_armorm(model)
        rewards = (
            computed(ids, tokenizer, model, parts, servers) if native else served(ids, reward_model, config, servers)
        )
        with verifier() as verify:
            for (without, rows), found in zip(pieces(), rewards, strict=True):
                reward_of = dict(zip(judged(rows), found, strict=True))
                right = {each: verify(each[1], references[each[0]]) for each in judged(rows) if each[0] in references}
                counts["without a solution"] += without
                counts["scored"] += len(rows)
                scored_rows = []
                for row in rows:
                    answer = row["query_id"], row["solution"]
                    scored_rows.append(scored(row, reward_of[answer], right.get(answer), plan, config))
                if references:
                    counts["verified"] += sum(row["verified"] is not None for row in scored_rows)
                    counts["right"] += sum(row["verified"] is True for row in scored_rows)
                yield scored_rows

    def done() -> float:
        in_parts = part_count(parts)
        computed_share = sum(rewards_path(parts, n).exists() for n in range(in_parts)) / in_parts if in_parts else 0.0
        return computed_share or sum(counts.values()) / total

    with progress(plan.step, done):
        made = write_table(store, plan.step, plan.key, SCORES, batches(), plan.provenance, counts=lambda: counts)
        if parts.exists():
            shutil.rmtree(parts)  # the table holds it all now
    return made


def served(
    batches: Iterable[list[list[int]]], reward_model: Ref, config: ScoreConfig, servers: Servers
) -> Iterator[list[float]]:
    """Rewards of token ids, batch by batch, from the server of a sequence classifier."""
    server = servers.reward(reward_model)
    for ids in batches:
        yield asyncio.run(
            classify(server.url, server.served_name, ids, max_in_flight=config.in_flight, alive=server.check)
        )


def computed(
    batches: Iterable[list[list[int]]], tokenizer: Any, model: Path, parts: Path, servers: Servers
) -> Iterator[list[float]]:
    """Rewards of token ids, batch by batch, from ArmoRM: all of them are laid into the folder `parts` first.

    Raises:
        ValueError: a sequence is longer than the reward model's `max_model_len`.
    """
    options = servers.scorer()
    parts.mkdir(parents=True, exist_ok=True)
    count = 0
    for ids in batches:
        if (longest := max(map(len, ids), default=0)) > options.max_model_len:
            raise ValueError(
                f"a query and its solution are {longest} tokens long, serving.reward.max_model_len is "
                f"{options.max_model_len}: raise it (the model's own limit is in its config.json)"
            )
        write_part(parts, count, [(each, gate_position(tokenizer, each)) for each in ids])
        count += 1
    config = ArmoConfig(model=model, parts=parts, dtype=options.dtype)  # type: ignore[arg-type]  # checked there
    score_parts(config, ranks=options.tensor_parallel_size)
    for number in range(count):
        yield np.load(rewards_path(parts, number), allow_pickle=False).tolist()


def check_reward_model(store: Store, reward_model: Ref) -> None:
    """Refuse a reward model without a chat template: a look at its files, before anything is sampled.

    Raises:
        BadInput: no file of the model holds a chat template.
    """
    files = {part.path for part in expect(store, reward_model).parts}
    folder = f"{reward_model.step}/{reward_model.key}"
    told = "tokenizer_config.json"
    if "chat_template.jinja" in files or "chat_template.json" in files:
        return
    if told in files and json.loads(store.read_bytes(f"{folder}/{told}")).get("chat_template"):
        return
    raise BadInput(
        f"reward model {folder}: no chat template in its files (expected chat_template.jinja, or chat_template in "
        f"{told}); it reads query and solution through its own: add the template it was trained with to the folder"
    )


def references_of(store: Store, queries: Ref) -> dict[str, str]:
    """The reference answers of the queries that have one."""
    rows = read_rows(store, queries, ["query_id", "reference"])
    return {row["query_id"]: row["reference"] for row in rows if row["reference"] is not None}


@contextmanager
def verifier() -> Iterator[Callable[[str, str], bool]]:
    """Whether a solution gives a reference answer, told by a process that starts when it is first asked."""
    with Limited("evals.graders:math500", timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES) as child:

        def verify(solution: str, reference: str) -> bool:
            found = child(solution, reference)
            return not isinstance(found, NoResult) and bool(found["correct"])

        yield verify


def scored(
    row: dict[str, Any], reward: float, verified: bool | None, plan: Plan, config: ScoreConfig
) -> dict[str, Any]:
    """A row of `scores`; `verified` is None where the query has no reference answer, or they do not count.

    `reward` is the reward of the outcome: the reward model's, and what a right answer adds.
    """
    if not math.isfinite(reward):
        raise ValueError(
            f"{plan.step}: the reward model gave {reward} for query {row['query_id']}, sample {row['sample']}"
        )
    outcome = reward + (config.verified_weight if verified else 0.0)
    format_reward = config.format_weight if is_well_formed(row) else 0.0
    return {
        "query_id": row["query_id"],
        "sample": row["sample"],
        "reward_model": plan.provenance.inputs["reward_model"].key,
        "reward": outcome,
        "format_reward": format_reward,
        "verified": verified,
        "total": outcome + format_reward,
    }
