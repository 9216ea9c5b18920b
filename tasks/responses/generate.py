"""LongCoT sampling: one shard of queries through the vLLM servers, each finished request kept in a ledger.

This one step serves bootstrapping (BOLT section 3.1.3), online sampling (3.3) and evaluation: with or without
in-context examples in the prompt, and with n samples per query.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cot_formats.responses import Format, delimiters, opened_part, parse_response
from infra.serving.completions import Completion, Request, Sampling
from infra.serving.ledger import Ledger
from infra.serving.pool import Pool, complete_on
from infra.serving.rate import Rate
from infra.serving.servers import Servers
from infra.serving.shard_ledger import places, shard_ledger
from infra.steps.progress import progress
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import RESPONSES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import count_tokens, generation_prefix, load_tokenizer
from tasks.responses.prompt import PROMPT_COLUMNS, PromptConfig, query_prompt, shown_ids

log = logging.getLogger(__name__)


class TruncationError(RuntimeError):
    """Too many samples were cut at `max_tokens`."""


class QuarantineError(RuntimeError):
    """Too many requests were quarantined: the server refused them, or died while they were alone on it."""


class GenerateConfig(BaseModel):
    """How responses are sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(8, ge=1, description="Number of samples per query (BOLT: 8).")
    temperature: float = Field(
        1.0, ge=0, description="Sampling temperature (BOLT: 1.0 online; not stated for bootstrapping)."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Probability mass of nucleus sampling (BOLT: 1.0 online).")
    max_tokens: int = Field(8192, ge=1, description="Maximum length of a response, in tokens (this project's choice).")
    max_truncated_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest share of samples cut at max_tokens; the step fails as soon as there are more.",
    )
    format: Format = Field(
        "bolt", description="LongCoT format of the responses; `plain` for a ShortCoT model's answers."
    )
    end_at_close: bool = Field(
        False,
        description="End a sample after the delimiter that closes the solution. For a model that is shown the format "
        "in context and goes on after it. Without effect in formats whose solution has no closing delimiter.",
    )
    seed: int = Field(0, description="Seed of sampling and of the draw of in-context examples.")
    request_seeds: bool = Field(
        True, description="Give each request its own seed; set to false if the engine cannot take one (on CPU)."
    )
    in_flight: int = Field(
        64, ge=1, description="Concurrent requests (of n samples each) per server and shard; 4 shards run at once."
    )
    max_quarantined_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of requests quarantined because the server refused them (too long, ...) or because "
        "servers died while they were alone on them; the step fails as soon as there are more, but never for a single "
        "one (this project's choice).",
    )


def request_seed(seed: int, query_id: str) -> int:
    """The sampling seed of a query's request, from 0 to 2**31 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{query_id}".encode()).digest()[:4], "big") >> 1


def shard_of(store: Store, queries: Ref, shard: int, shards: int) -> Iterator[dict[str, Any]]:
    """The queries of one shard: every `shards`-th row, from row `shard` on."""
    return islice(read_rows(store, queries), shard, None, shards)


@dataclass
class Limits:
    """Counts truncated samples and quarantined requests of a shard, so that it fails as soon as it is bound to."""

    step: str
    config: GenerateConfig
    requests: int
    """Requests of the shard."""
    places: str
    """Where the ledger is, for the messages."""
    truncated: int = 0
    """Samples cut at `max_tokens`."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """Reasons by query id."""

    def add(self, query_id: str, record: Mapping[str, Any]) -> None:
        """Count a record of the ledger.

        Raises:
            QuarantineError: more of the shard's requests are quarantined than `max_quarantined_share` allows. One
                always is allowed, however small the shard.
            TruncationError: more of the shard's samples are truncated than `max_truncated_share` allows.
        """
        if reason := record.get("quarantined"):
            self.quarantined[query_id] = reason
        else:
            self.truncated += [sample["finish_reason"] for sample in record["samples"]].count("length")
        config, samples = self.config, self.requests * self.config.samples
        if len(self.quarantined) > max(1, config.max_quarantined_share * self.requests):
            first, reason = next(iter(self.quarantined.items()))
            raise QuarantineError(
                f"{self.step}: {len(self.quarantined)} of {self.requests} requests were quarantined, limit "
                f"{config.max_quarantined_share:.1%}; the first is query {first}: it {reason}; remove the "
                "cause, or raise max_quarantined_share to continue without them (delete "
                f"{self.places} to send them again)"
            )
        if self.truncated > config.max_truncated_share * samples:
            raise TruncationError(
                f"{self.step}: at least {self.truncated} of {samples} samples ({self.truncated / samples:.1%}) are cut "
                f"at max_tokens={config.max_tokens}, limit {config.max_truncated_share:.1%}: raise max_tokens (or "
                "max_truncated_share, if truncated samples do no harm)"
            )


TOGETHER = 8
"""Requests without seeds in one HTTP request, if at least five of these are in flight."""
OUTSIDE_KEY = ("config.in_flight", "config.max_truncated_share", "config.max_quarantined_share")


@step(outside_key=OUTSIDE_KEY, serves={"model": "policy"})
def generate(
    plan: Plan,
    store: Store,
    *,
    config: GenerateConfig,
    queries: Ref,
    model: Ref,
    servers: Servers,
    shard: int = 0,
    shards: int = 1,
    prompt: PromptConfig | None = None,
    examples: Ref | None = None,
) -> Ref:
    """Sample `config.samples` responses to each query of a shard and write the table `responses`.

    A benchmark problem may have earlier turns (`history`); in-context examples go into the last turn.

    Raises:
        TruncationError: the share of truncated samples exceeds `max_truncated_share`, or is bound to; the ledger keeps
            all samples.
        QuarantineError: the share of quarantined requests exceeds `max_quarantined_share`, or is bound to; the ledger
            keeps them and all samples.
        infra.serving.vllm_server.ServerError: no server is left.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    table = list(read_rows(store, examples)) if examples else []
    asked, shown = dict[str, dict[str, Any]](), dict[str, list[str]]()
    for query in shard_of(store, queries, shard, shards):
        query_id = query["query_id"]
        asked[query_id] = {name: query[name] for name in PROMPT_COLUMNS if name in query}
        shown[query_id] = shown_ids(query_id, config.seed, prompt, table)

    def prompt_of(query_id: str) -> str:
        return query_prompt(asked[query_id], tokenizer, config.format, config.seed, prompt, table)

    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:
        limits = Limits(plan.step, config, len(asked), places(store, ledger))
        for query_id in asked:
            if query_id in ledger:
                limits.add(query_id, ledger[query_id])
        if owed := owed_groups(shown, ledger):
            prompt_of(owed[0][0])  # what is wrong with all prompts is found before a server is started
            sample_groups(plan.step, config, owed, prompt_of, tokenizer, servers.policies(model), ledger, limits)
        answered = {name: ids for name, ids in shown.items() if name not in limits.quarantined}
        counts = {"truncated": limits.truncated, "malformed": 0, "completion_tokens": 0}
        counts["quarantined"] = len(limits.quarantined)
        opened = bool(opened_part(generation_prefix(tokenizer), config.format))
        rows = response_rows(tokenizer, answered, ledger, config.format, opened, counts)
        made = write_table(store, plan.step, plan.key, RESPONSES, batched(rows), plan.provenance, counts=lambda: counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def owed_groups(shown: Mapping[str, list[str]], ledger: Mapping[str, Any]) -> list[list[str]]:
    """The ids of the queries that the ledger lacks, grouped by equal examples, for the servers' prefix caches.

    `shown`: by query id, the ids of the examples in its prompt.
    """
    owed = sorted((query_id for query_id in shown if query_id not in ledger), key=lambda query_id: shown[query_id])
    return [list(group) for _, group in groupby(owed, key=lambda query_id: shown[query_id])]


def sample_groups(
    step: str,
    config: GenerateConfig,
    groups: list[list[str]],
    prompt_of: Callable[[str], str],
    tokenizer: Any,
    pool: Pool,
    ledger: Ledger,
    limits: Limits,
) -> None:
    """Sample for all queries of `groups`; the ledger then has the samples of each, or why it was quarantined.

    `prompt_of`: the whole chat prompt of a query id, made when its turn comes.

    Raises:
        As `infra.serving.pool.complete_on`, `Limits.add` and `prompt_of`.
    """
    rate = Rate(pool)
    sampling = Sampling(
        n=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        stop=delimiters(config.format)[3:] if config.end_at_close else (),  # else the model's own end tokens only
    )
    with progress(step, lambda: len(ledger), limits.requests, "requests", detail=rate.text):
        completing = complete_on(
            pool,
            groups,
            partial(request_for, config, prompt_of, tokenizer),
            sampling,
            max_in_flight=config.in_flight,
            together=1 if config.request_seeds else max(1, min(TOGETHER, config.in_flight // 5)),
            on_result=partial(keep_samples, ledger, limits, rate.add),
            on_quarantine=partial(keep_quarantined, step, ledger, limits),
        )
        asyncio.run(completing)


def request_for(config: GenerateConfig, prompt_of: Callable[[str], str], tokenizer: Any, query_id: str) -> Request:
    """The request of a query. Its prompt is made only now: a shard's prompts with examples would take gigabytes."""
    seed = request_seed(config.seed, query_id) if config.request_seeds else None
    return Request(query_id, tokenizer.encode(prompt_of(query_id), add_special_tokens=False), seed)


def keep_samples(
    ledger: Ledger,
    limits: Limits,
    add_tokens: Callable[[int], None],
    request: Request,
    completions: list[Completion],
) -> None:
    """Put the samples of a finished request into the ledger, and report its sampled tokens to `add_tokens`."""
    samples = [{"text": c.text, "finish_reason": c.finish_reason, "tokens": c.tokens} for c in completions]
    record = {"samples": samples, "prompt_tokens": len(request.prompt_ids), "seed": request.seed}
    ledger.append(request.request_id, record)
    add_tokens(sum(c.tokens for c in completions))
    limits.add(request.request_id, record)


def keep_quarantined(step: str, ledger: Ledger, limits: Limits, request: Request, reason: str) -> None:
    """Log a quarantined request and put it into the ledger, so that it is not sent again."""
    log.warning("%s: request %s is quarantined: it %s", step, request.request_id, reason)
    ledger.append(request.request_id, {"quarantined": reason})
    limits.add(request.request_id, {"quarantined": reason})


def response_rows(
    tokenizer: Any,
    answered: Mapping[str, list[str]],
    records: Mapping[str, dict[str, Any]],
    format: Format,
    opened: bool,
    counts: dict[str, int],
) -> Iterator[dict[str, Any]]:
    """The rows of `responses` in query order, from the ledger's records.

    Args:
        answered: by query id, the ids of the in-context examples shown.
        opened: whether the chat template opens the thoughts at the end of the prompt.
        counts: `malformed` and `completion_tokens` are added to as rows are made.
    """
    for query_id, example_ids in answered.items():
        record = records[query_id]
        for number, sample in enumerate(record["samples"]):
            parsed = parse_response(sample["text"], format, opened, ended=sample["finish_reason"] == "stop")
            counts["malformed"] += bool(parsed["violations"])
            counts["completion_tokens"] += sample["tokens"]
            yield {
                "query_id": query_id,
                "sample": number,
                "example_ids": example_ids,
                "seed": record["seed"],
                "text": sample["text"],
                **parsed,
                "finish_reason": sample["finish_reason"],
                "prompt_tokens": record["prompt_tokens"],
                "completion_tokens": sample["tokens"],
                "thought_tokens": count_tokens(tokenizer, parsed["thoughts"] or ""),
                "solution_tokens": count_tokens(tokenizer, parsed["solution"] or ""),
            }
