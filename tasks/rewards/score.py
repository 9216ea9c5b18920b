"""Reward scoring: the outcome reward model on (query, solution), plus a rule-based format reward (BOLT 3.1.3 and 3.3).

If a query has a reference answer, a solution that gives it can earn an extra reward (this project's option).

The thoughts never reach the reward model: no reward model for them exists.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cot_formats.responses import is_well_formed
from infra.errors import BadInput
from infra.serving.armorm import (
    ArmoConfig,
    gate_position,
    is_armorm,
    part_count,
    rewards_path,
    score_parts,
    write_part,
)
from infra.serving.classifier import Classifier
from infra.serving.servers import Servers
from infra.serving.shard_ledger import FOLDER
from infra.steps.inputs import digest_of_files
from infra.steps.progress import progress
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.model_files import CONFIG, ModelFiles
from infra.store.models import fetch_model
from infra.store.schemas import SCORES
from infra.store.store import Store
from infra.store.tables import scan_shard, shard_range, write_table
from infra.text.chat import load_tokenizer, neutralise
from tasks.responses.queries import column_of_queries
from tasks.rewards.verify import Own, Verifier, Verify, module_file, verifier

Rows = list[dict[str, Any]]
Answer = tuple[str, str]  # query id, solution
TOO_LONG = "too long for the reward model"  # in the manifest's counts, if there are any
COLUMNS = ["query_id", "sample", "solution", "violations", "finish_reason"]


class ScoreConfig(BaseModel):
    """How responses are scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_weight: float = Field(
        1.0,
        ge=0,
        description="Added to the reward of a well-formed response (BOLT adds one; its weight is not stated).",
    )
    verified_weight: float = Field(
        0.0,
        ge=0,
        description="Added to the reward if the solution gives the query's reference answer; queries "
        "without one get nothing (this project's option; BOLT has none).",
    )
    verifier: Verifier | Own = Field(
        "math500",
        description="How a solution is compared with the reference answer: `math500` (math-verify, for any formula), "
        "`everyday` (a number or a day of the week, in any wording), `short-answer` (`answer : VALUE .`), or a "
        "function of your own, as `package.module:name`, which gets both texts and returns whether they agree "
        "(the file of the module is a part of cache keys, what it imports is not).",
    )
    max_too_long_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of a shard's responses that get no score because query and solution are longer than "
        "`serving.reward.max_model_len`; the step fails as soon as there are more (this project's choice).",
    )
    in_flight: int = Field(
        64,
        ge=1,
        description="Concurrent scoring requests of a shard. Shards run one after the other, except on a Ray cluster.",
    )

    def contents(self) -> str:
        """The digest of the module that holds the user's own verifier; "" for the others."""
        module, _, name = self.verifier.partition(":")
        return digest_of_files([module_file(module)]) if name else ""


def reward_input_ids(tokenizer: Any, query: str, solution: str) -> list[int]:
    """The reward model's input: query and solution in its own chat template, as token ids."""
    messages = [
        {"role": "user", "content": neutralise(query, tokenizer)},
        {"role": "assistant", "content": neutralise(solution, tokenizer)},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class Batch(NamedTuple):
    """A batch of responses."""

    rows: Rows
    """Those that have a solution."""
    without: int
    """Number of those that have none."""

    @property
    def answers(self) -> list[Answer]:
        """What is scored, without duplicates: samples of a query with the same solution get the same reward."""
        return list(dict.fromkeys((row["query_id"], row["solution"]) for row in self.rows))


def batches_of(store: Store, responses: Sequence[Ref], shard: int = 0, shards: int = 1) -> Iterator[Batch]:
    """The responses of a shard, streamed."""
    for batch in scan_shard(store, responses, shard, shards, COLUMNS):
        rows = [row for row in batch.to_pylist() if row["solution"]]
        yield Batch(rows, batch.num_rows - len(rows))


@step(outside_key=("config.in_flight", "config.max_too_long_share"), serves={"reward_model": "reward"}, one_by_one=True)
def score(
    plan: Plan,
    store: Store,
    *,
    config: ScoreConfig,
    responses: Sequence[Ref],
    queries: Ref,
    reward_model: Ref | None,
    servers: Servers,
    shard: int = 0,
    shards: int = 1,
) -> Ref:
    """Write the table `rewards`: a row for each response of a shard with a solution that the reward model can read.

    Those without one, and those that are too long for the reward model, are counted. ArmoRM runs in processes of its
    own, every other reward model on a vLLM server. Without a reward model, the reward is what `verified_weight` adds.

    Raises:
        BadInput: the share of the shard's responses that are too long exceeds `max_too_long_share`.
        infra.serving.completions.CompletionError: the server refused a request.
        infra.serving.vllm_server.ServerError: the server died.
        infra.processes.torchrun.TrainerError: ArmoRM's process failed.
    """
    place = (responses, shard, shards)
    references = references_of(store, queries, *place) if config.verified_weight else {}
    counts = {"scored": 0, "without a solution": 0} | ({"verified": 0, "correct": 0} if references else {})
    total = len(shard_range(*place))
    parts, kept = servers.work_dir / "scoring" / f"{plan.step}-{plan.key}", f"{FOLDER}/{plan.step}-{plan.key}"
    rewards: Iterator[list[float | None]]
    if reward_model is None:
        rewards = ([0.0] * len(batch.answers) for batch in batches_of(store, *place))
    else:
        texts = column_of_queries(store, queries, "query", *place)
        batches = batches_of(store, *place)
        rewards = modelled_rewards(store, reward_model, batches, texts, config, parts, kept, servers)

    def done() -> float:
        return max(total * share_computed(parts), counts["scored"] + counts["without a solution"])

    with verifier(config.verifier) as verify, progress(plan.step, done, total, "responses"):
        rows = score_rows(batches_of(store, *place), rewards, references, verify, reward_model, config, counts)
        rows = check_verified(check_too_long(rows, config, counts, total), verify, counts)
        made = write_table(store, plan.step, plan.key, SCORES, rows, plan.provenance, counts=lambda: counts)
    for path in store.list(kept):  # the table holds it all now
        store.delete(path)
    if parts.exists():
        shutil.rmtree(parts)
    return made


def score_rows(
    batches: Iterable[Batch],
    rewards: Iterable[list[float | None]],
    references: Mapping[str, str],
    verify: Callable[[str, str], bool | None],
    reward_model: Ref | None,
    config: ScoreConfig,
    counts: dict[str, int],
) -> Iterator[Rows]:
    """The rows of `rewards`, batch by batch.

    Args:
        rewards: one list per batch, with the reward of each of its `answers`; None for one that is too long.
        references: reference answers by query id; queries without one are not verified.
        verify: tells whether a solution gives a reference answer; None if it cannot tell.
        counts: added to, batch by batch.

    Raises:
        ValueError: a reward is not finite; or there are not as many lists of rewards as batches.
    """
    for batch, found in zip(batches, rewards, strict=True):
        reward_of = dict(zip(batch.answers, found, strict=True))
        verified = {each: verify(each[1], references[each[0]]) for each in batch.answers if each[0] in references}
        rows = [
            score_row(row, reward, verified.get(answer), reward_model, config)
            for row in batch.rows
            for answer in [(row["query_id"], row["solution"])]
            if (reward := reward_of[answer]) is not None
        ]
        if too_long := len(batch.rows) - len(rows):
            counts[TOO_LONG] = counts.get(TOO_LONG, 0) + too_long
        counts["without a solution"] += batch.without
        counts["scored"] += len(rows)
        if references:
            counts["verified"] += sum(row["verified"] is not None for row in rows)
            counts["correct"] += sum(row["verified"] is True for row in rows)
        yield rows


def check_too_long(rows: Iterable[Rows], config: ScoreConfig, counts: Mapping[str, int], total: int) -> Iterator[Rows]:
    """The rows, until too many of `total` responses are too long, by `counts`. Raises `BadInput` then."""
    for each in rows:
        yield each
        if (found := counts.get(TOO_LONG, 0)) > config.max_too_long_share * total:
            raise BadInput(
                f"{found} of {total} responses are, with their queries, longer than the reward model reads "
                f"(serving.reward.max_model_len), limit {config.max_too_long_share:.1%}: raise it (the model's own "
                "limit is in its config.json), lower generate.max_tokens, or raise score.max_too_long_share to go on "
                "without them"
            )


def check_verified(rows: Iterable[Rows], verify: Verify, counts: dict[str, int]) -> Iterator[Rows]:
    """The rows; then the verifier's failures are added to `counts`. Raises `BadInput` as `Verify.check`."""
    yield from rows
    verify.check()
    counts.update(verify.failed)


def modelled_rewards(
    store: Store,
    reward_model: Ref,
    batches: Iterable[Batch],
    texts: Mapping[str, str],
    config: ScoreConfig,
    parts: Path,
    kept: str,
    servers: Servers,
) -> Iterator[list[float | None]]:
    """The reward model's rewards, one list per batch of responses; None for what is too long. Raises as `score`.

    Args:
        texts: the queries' texts by id.
        parts: folder of this machine for ArmoRM's inputs and rewards.
        kept: folder of the store for the rewards of a served reward model.
    """
    model = fetch_model(store, reward_model, servers.work_dir)
    tokenizer = load_tokenizer(model)
    limit = servers.options("reward").max_model_len
    fits: deque[list[bool]] = deque()  # by batch, of each of its answers

    def fitting() -> Iterator[list[list[int]]]:
        for batch in batches:
            ids = [reward_input_ids(tokenizer, texts[query_id], solution) for query_id, solution in batch.answers]
            fits.append([len(each) <= limit for each in ids])
            yield [each for each in ids if len(each) <= limit]

    if is_armorm(ModelFiles.of(store, reward_model).read(CONFIG)):
        rewards = armorm_rewards(fitting(), tokenizer, model, parts, servers)
    else:
        rewards = served_rewards(fitting(), reward_model, config, store, kept, servers)
    for found in rewards:
        left = iter(found)
        yield [next(left) if each else None for each in fits.popleft()]


def share_computed(parts: Path) -> float:
    """The share of ArmoRM's parts that have their rewards, from 0 to 1; 0 if there are no parts."""
    count = part_count(parts)
    return sum(rewards_path(parts, number).exists() for number in range(count)) / count if count else 0.0


def served_rewards(
    batches: Iterable[list[list[int]]],
    reward_model: Ref,
    config: ScoreConfig,
    store: Store,
    kept: str,
    servers: Servers,
) -> Iterator[list[float]]:
    """Rewards of token id sequences, batch by batch, from a sequence classifier on a vLLM server.

    Those of finished batches are kept in the store's folder `kept`: a step that was killed asks for the others only, on
    whichever machine it goes on.
    """
    classifier: Classifier | None = None
    for number, ids in enumerate(batches):
        path = f"{kept}/rewards-{number:05}.json"
        found: list[float] = json.loads(store.read_if_there(path) or b"[]")
        if len(found) != len(ids):
            classifier = classifier or Classifier(partial(servers.reward, reward_model))
            found = asyncio.run(classifier.logits(ids, max_in_flight=config.in_flight))
            if np.isfinite(found).all():  # others fail the step, and are asked for again
                store.write_bytes(path, json.dumps([float(each) for each in found]).encode())
        yield found


def armorm_rewards(
    batches: Iterable[list[list[int]]], tokenizer: Any, model: Path, parts: Path, servers: Servers
) -> Iterator[list[float]]:
    """Rewards of token id sequences, batch by batch, from ArmoRM, which reads them all from the folder `parts`."""
    options = servers.scorer()
    parts.mkdir(parents=True, exist_ok=True)
    for number, ids in enumerate(batches):
        write_part(parts, number, [(each, gate_position(tokenizer, each)) for each in ids])
    config = ArmoConfig(model=model, parts=parts, dtype=options.dtype or "bfloat16")  # type: ignore[arg-type]  # checked there
    score_parts(config, ranks=options.tensor_parallel_size)
    for number in range(part_count(parts)):
        yield np.load(rewards_path(parts, number), allow_pickle=False).tolist()


def references_of(
    store: Store, queries: Ref, responses: Sequence[Ref], shard: int = 0, shards: int = 1
) -> dict[str, str]:
    """The reference answers of those queries that the responses of a shard answer and that have one, by query id."""
    found = column_of_queries(store, queries, "reference", responses, shard, shards)
    return {query_id: reference for query_id, reference in found.items() if reference is not None}


def score_row(
    row: dict[str, Any], reward: float, verified: bool | None, reward_model: Ref | None, config: ScoreConfig
) -> dict[str, Any]:
    """A row of `rewards`. Its `reward` is the outcome's: the reward model's, plus what a correct answer adds.

    `verified`: whether the solution gives the reference answer; None if there is none, it does not count, or the
    verifier had no verdict.

    Raises:
        ValueError: the reward is not finite.
    """
    if reward_model and not math.isfinite(reward):
        raise ValueError(
            f"reward model {reward_model.step}/{reward_model.key} gave {reward} for query {row['query_id']}, sample "
            f"{row['sample']}: expected a finite number"
        )
    outcome = reward + (config.verified_weight if verified else 0.0)
    format_reward = config.format_weight if is_well_formed(row) else 0.0
    return {
        "query_id": row["query_id"],
        "sample": row["sample"],
        "reward_model": reward_model.key if reward_model else None,
        "reward": outcome,
        "format_reward": format_reward,
        "verified": verified,
        "total": outcome + format_reward,
    }
