"""Stage 3, one iteration by a policy gradient that samples while it trains; pi_0 is always the SFT model.

This is the step. The trainer is `tasks/training/on_policy_trainer.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cot_formats.responses import Format, LongFormat, opened_part
from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import ROLLOUTS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import generation_prefix, load_tokenizer, prompt_text
from infra.training.config import PolicyGradient, RlRecipe
from infra.training.hosts import HERE, Hosts
from tasks.rewards.score import ScoreConfig
from tasks.training.on_policy_config import OnPolicyConfig, Rewarding, rollouts_path
from tasks.training.train import OUTSIDE_KEY, check_table, policies, train_and_publish

PROMPTS = pa.schema([(name, pa.string()) for name in ("query_id", "prompt", "query", "reference")])
TRAINER = "tasks.training.on_policy_trainer"
OUTSIDE = ("score.in_flight", "score.max_too_long_share", *(name for name in OUTSIDE_KEY if name != "config.ranks"))
"""What is not in the cache key. The number of ranks is, if it is set: each samples with a seed of its own."""
COUNTS = (
    "completion_tokens",
    "rollouts_in_all",
    "rollouts_truncated",
    "rollouts_without_a_score",
    "rollouts_compared",
    "rollouts_without_a_verdict",
    "rollouts_that_differ",
)
"""What is counted of the samples; those that were `compared` have a reference answer and a solution, and those that
`differ` another reward than the query's sample before them."""


@step(outside_key=OUTSIDE, serves={"reward_model": "reward"})
def train_on_policy(
    plan: Plan,
    store: Store,
    *,
    method: PolicyGradient,
    config: RlRecipe,
    samples: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    format: Format,
    score: ScoreConfig,
    queries: Ref,
    policy: Ref,
    reference: Ref,
    reward_model: Ref | None,
    servers: Servers,
    hosts: Hosts = HERE,
) -> Ref:
    """Train `policy` on samples that it draws for `queries` while it is trained, and publish the resulting model.

    The reward model's server stays up beside the trainer. What was sampled becomes the table `STEP-rollouts`, which has
    the model's key.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; the message has its last log lines.
        BadInput: there are no queries; the reference has another vocabulary; no sample had a score, or all of a query
            equal ones; no call of the user's own verifier had a verdict; or as `train_and_publish`.
    """
    check_table(queries, method)
    model, fixed = policies(store, servers, policy, reference)
    prefix = generation_prefix(load_tokenizer(model))

    def make_config(output: Path) -> OnPolicyConfig:
        rewarding = Rewarding(
            score=score,
            format=format,
            opened=bool(opened_part(prefix, format)),
            reward_model=reward_model,
            **reward_server(store, servers, reward_model),
        )
        return OnPolicyConfig(
            **config.model_dump(),
            method=method,
            temperature=temperature,
            top_p=top_p,
            samples_per_query=samples,
            max_tokens=max_tokens,
            rewarding=rewarding,
            model=model,
            reference=fixed,
            data=(write_prompts(store, queries, model, output.with_name("prompts.parquet")),),
            output=output,
        )

    def keep_rollouts(output: Path) -> dict[str, Any]:
        counts = counted(lines_of(output))
        check_learned(counts, plan.step, score, method)
        made = write_table(
            store, f"{plan.step}-rollouts", plan.key, ROLLOUTS, batched(rollouts(output)), plan.provenance
        )
        return {"rollouts": f"{made.step}/{made.key}", **counts}

    learned: LongFormat | None = None if format == "plain" else format
    return train_and_publish(plan, store, servers, TRAINER, make_config, config, hosts, learned, keep=keep_rollouts)


def check_batch(config: RlRecipe, samples: int, max_tokens: int) -> None:
    """Refuse optimiser steps without whole queries, and samples without room for their prompts. Raises `ValueError`."""
    if config.batch % samples:
        raise ValueError(
            f"rl.batch is {config.batch}, but with rl.on_policy each optimiser step has all samples of its queries "
            f"(generate.samples is {samples}): set rl.batch to a multiple of that, such as "
            f"{max(1, config.batch // samples) * samples}"
        )
    if max_tokens >= config.max_length:
        raise ValueError(
            f"generate.max_tokens is {max_tokens:,}, but rl.max_length is {config.max_length:,}, which leaves no room "
            "for prompts: lower the first, or raise the second"
        )


def reward_server(store: Store, servers: Servers, reward_model: Ref | None) -> dict[str, Any]:
    """Where the trainer asks for rewards; nothing without a reward model."""
    if reward_model is None:
        return {}
    folder, server = fetch_model(store, reward_model, servers.work_dir), servers.reward(reward_model)
    limit = servers.options("reward").max_model_len
    return {"tokenizer": folder, "url": server.url, "served_name": server.served_name, "max_length": limit}


def write_prompts(store: Store, queries: Ref, model: Path, target: Path) -> Path:
    """Write the queries as the trainer reads them, in the chat template of the folder `model`. Returns `target`."""
    tokenizer = load_tokenizer(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(target, PROMPTS) as out:
        for batch in batched(read_rows(store, queries, ["query_id", "query", "reference"])):
            rows = [
                {**row, "prompt": prompt_text(tokenizer, [{"role": "user", "content": row["query"]}])} for row in batch
            ]
            out.write_table(pa.Table.from_pylist(rows, PROMPTS))
    return target


def lines_of(output: Path) -> Iterator[dict[str, Any]]:
    """What the trainer wrote of each sample, in the order of its steps."""
    with rollouts_path(output).open() as lines:
        yield from map(json.loads, lines)


def rollouts(output: Path) -> Iterator[dict[str, Any]]:
    """The rows of the table of what the trainer sampled."""
    for line in lines_of(output):
        yield {name: line[name] for name in ROLLOUTS.names}


def counted(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Counts of what the trainer sampled, for the model's manifest."""
    counts = Counter(dict.fromkeys(COUNTS, 0))
    last: list[Any] = []
    for line in lines:
        now = [line["step"], line["query_id"]]
        counts["rollouts_that_differ"] += last[:2] == now and last[2] != line["reward"]
        last = [*now, line["reward"]]
        counts["rollouts_in_all"] += 1
        counts["completion_tokens"] += line["completion_tokens"]
        counts["rollouts_truncated"] += line["finish_reason"] != "stop"
        counts["rollouts_without_a_score"] += line["reward"] is None
        counts["rollouts_compared"] += "verified" in line
        counts["rollouts_without_a_verdict"] += "verified" in line and line["verified"] is None
    return dict(counts)


def check_learned(counts: Mapping[str, int], step: str, score: ScoreConfig, method: PolicyGradient) -> None:
    """Refuse a model that was trained on no reward at all, or on rewards that teach nothing. Raises `BadInput`."""
    if counts["rollouts_without_a_score"] == counts["rollouts_in_all"]:
        raise BadInput(
            f"{step}: none of the {counts['rollouts_in_all']:,} samples had a score, since none had a solution that "
            f"the reward model can read ({counts['rollouts_truncated']:,} were cut off): raise generate.max_tokens if "
            "they are cut, or train SFT longer"
        )
    if not counts["rollouts_that_differ"] and method != "reinforce":  # which compares with other queries
        raise BadInput(
            f"{step}: the samples of each query had equal rewards, so that there was nothing to learn from them: use "
            "other queries, more samples, or a higher generate.temperature"
        )
    if ":" in score.verifier and 0 < counts["rollouts_compared"] == counts["rollouts_without_a_verdict"]:
        raise BadInput(
            f"{step}: the verifier {score.verifier} had no verdict on any of {counts['rollouts_compared']:,} samples: "
            "correct it"
        )
