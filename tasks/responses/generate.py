"""LongCoT sampling: one shard of queries through the vLLM servers, each finished request kept in a ledger.

Bootstrapping (BOLT section 3.1.3), online sampling (3.3) and evaluation are this one step: with in-context examples in
the prompt or without, n samples a query.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from itertools import combinations, groupby, islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from cot_formats.responses import PLAIN, Format, delimiters, opened_part, parse_response
from infra.serving.completions import Completion, Request, Sampling
from infra.serving.pool import complete_on
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
from infra.text.chat import count_tokens, generation_prefix, load_tokenizer, neutralise, prompt_text
from infra.text.templates import filled
from tasks.examples.read import ExamplesConfig, candidates

log = logging.getLogger(__name__)


class TruncationError(RuntimeError):
    """Too many samples were cut at max_tokens."""


class QuarantineError(RuntimeError):
    """Too many requests killed a server twice."""


class GenerateConfig(BaseModel):
    """How responses are sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(8, ge=1, description="Samples a query (BOLT: 8).")
    temperature: float = Field(
        1.0, ge=0, description="Sampling temperature (BOLT: 1.0 online; bootstrapping not stated)."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling (BOLT: 1.0 online).")
    max_tokens: int = Field(8192, ge=1, description="Longest response, in tokens (this project's choice).")
    max_truncated_share: float = Field(
        0.05, ge=0, le=1, description="Largest share of samples cut at max_tokens; more fail the step."
    )
    format: Format = Field(
        "bolt", description="LongCoT format of the responses; `plain` for a ShortCoT model's answers."
    )
    seed: int = Field(0, description="Seed of the draw of in-context examples and of sampling.")
    request_seeds: bool = Field(
        True, description="Give each request its own seed; false where the engine can't (on CPU)."
    )
    in_flight: int = Field(
        64,
        ge=1,
        description="Requests (n samples each) under way at once on each server, per shard; 4 shards run at once.",
    )
    max_quarantined_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of requests set aside because they killed a server twice; more fail the step "
        "(this project's choice).",
    )


class PromptConfig(BaseModel):
    """How in-context examples and the query become one user turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int = Field(3, ge=1, description="In-context examples a prompt, drawn per query (BOLT: 3 of 10).")
    template: Path = Field(Path("prompts/in_context.md"), description="Text with {examples} and {query}.")
    example_template: Path = Field(
        Path("prompts/example.md"), description="Text of one example with {query} and {response}."
    )


def in_context_prompt(prompt: PromptConfig, shown: list[dict[str, Any]], query: str, format: Format) -> str:
    """The user turn that asks for a LongCoT response to `query` after the examples `shown`."""
    if format == PLAIN:
        raise ValueError("in-context examples show thoughts: sample in a LongCoT format, not `plain`")
    render = FORMATS[format].render
    examples = [
        filled(prompt.example_template, query=e["query"], response=render(e["thoughts"], e["solution"])) for e in shown
    ]
    return filled(prompt.template, examples="\n\n".join(examples), query=query)


def first_prompt(
    prompt: PromptConfig, examples: ExamplesConfig, query: dict[str, Any] | None, config: GenerateConfig
) -> str:
    """The first query's user turn, for a dry run: examples are read from the user's files, before any artifact exists.

    `query`: None where the queries are not known yet.
    """
    query = query or {"query_id": "", "query": "(the query: its source is not read in a dry run)"}
    shown = draw_examples(candidates(examples), prompt.examples, config.seed, query["query_id"])
    return in_context_prompt(prompt, shown, query["query"], config.format)


def draw_examples(examples: list[dict[str, Any]], count: int, seed: int, query_id: str) -> list[dict[str, Any]]:
    """`count` examples drawn for a query, in table order, so that equal draws share a prompt prefix.

    Every set of `count` examples is equally likely: a hash of seed and query id, modulo the number of sets, is the
    place of the set in lexicographic order. So a draw depends on nothing else, whatever was drawn before.
    """
    if count > len(examples):
        raise ValueError(f"{count} in-context examples a prompt, but the table `examples` holds {len(examples)}")
    digest = hashlib.sha256(f"examples:{seed}:{query_id}".encode()).digest()
    number = int.from_bytes(digest, "big") % math.comb(len(examples), count)
    return list(next(islice(combinations(examples, count), number, None)))


def request_seed(seed: int, query_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{query_id}".encode()).digest()[:4], "big") >> 1


def shard_of(store: Store, queries: Ref, shard: int, shards: int) -> Iterator[dict[str, Any]]:
    """The queries of one shard: every `shards`-th row."""
    for row, query in enumerate(read_rows(store, queries)):
        if row % shards == shard:
            yield query


def harmless_turn(turn: dict[str, str], tokenizer: Any, format: Format) -> dict[str, str]:
    """A turn before the query, without control tokens but the delimiters of thoughts that the model itself wrote."""
    keep = delimiters(format) if turn["role"] == "assistant" else ()
    return {**turn, "content": neutralise(turn["content"], tokenizer, keep)}


@step(
    outside_key=("config.in_flight", "config.max_truncated_share", "config.max_quarantined_share"),
    serves={"model": "policy"},
)
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
    """Sample `config.samples` responses for each query of a shard and write the table `responses`.

    A query of a benchmark may have turns before it (`history`); in-context examples go before the last turn.

    Raises:
        TruncationError: more samples were cut than `max_truncated_share`; the finished ones stay in the ledger.
        QuarantineError: more requests were set aside than `max_quarantined_share`; the ledger keeps them and the finished ones.
        infra.serving.vllm_server.ServerError: no server is left.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    shown = list(read_rows(store, examples)) if examples else []
    shown_tags = delimiters(config.format) if prompt else ()  # the examples' own; a query's are broken up before
    asked: dict[str, list[str]] = {}  # the examples shown, by query
    prompts: dict[str, str] = {}  # by query; tokenised when asked, since ids take ten times the memory
    for query in shard_of(store, queries, shard, shards):
        drawn = draw_examples(shown, prompt.examples, config.seed, query["query_id"]) if prompt else []
        text = neutralise(query["query"], tokenizer)
        if prompt:
            text = in_context_prompt(prompt, drawn, text, config.format)
        asked[query["query_id"]] = [e["example_id"] for e in drawn]
        earlier = [harmless_turn(turn, tokenizer, config.format) for turn in json.loads(query.get("history", "[]"))]
        tags = delimiters(config.format) if earlier else shown_tags
        prompts[query["query_id"]] = prompt_text(tokenizer, [*earlier, {"role": "user", "content": text}], tags)

    def request(query_id: str) -> Request:
        seed = request_seed(config.seed, query_id) if config.request_seeds else None
        return Request(query_id, tokenizer.encode(prompts[query_id], add_special_tokens=False), seed)

    sampling = Sampling(
        n=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        stop_token_ids=(),  # the model's own end tokens alone
    )
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:
        # Equal examples together, for the server's prefix cache.
        owed = sorted((query_id for query_id in asked if query_id not in ledger), key=lambda each: asked[each])
        if owed:
            groups = [list(group) for _, group in groupby(owed, key=lambda each: asked[each])]
            pool = servers.policies(model)
            rate = Rate(pool)

            def keep(request: Request, completions: list[Completion]) -> None:
                samples = [{"text": c.text, "finish_reason": c.finish_reason, "tokens": c.tokens} for c in completions]
                record = {"samples": samples, "prompt_tokens": len(request.prompt_ids), "seed": request.seed}
                ledger.append(request.request_id, record)
                rate.add(sum(c.tokens for c in completions))

            def quarantined(request: Request, reason: str) -> None:
                log.warning("%s: request %s is set aside: it %s", plan.step, request.request_id, reason)
                ledger.append(request.request_id, {"quarantined": reason})

            with progress(plan.step, lambda: len(ledger), len(asked), "requests", detail=rate.text):
                asking = complete_on(
                    pool,
                    groups,
                    request,
                    sampling,
                    max_in_flight=config.in_flight,
                    on_result=keep,
                    on_quarantine=quarantined,
                )
                asyncio.run(asking)
        aside = {query_id: ledger[query_id]["quarantined"] for query_id in asked if "quarantined" in ledger[query_id]}
        if len(aside) > config.max_quarantined_share * len(asked):
            raise QuarantineError(
                f"{plan.step}: {len(aside)} of {len(asked)} requests were set aside, limit "
                f"{config.max_quarantined_share:.1%}; the first is query {next(iter(aside))}: {next(iter(aside.values()))}; "
                "raise max_quarantined_share to go on without them, or, to ask all of the shard again, delete "
                f"{places(store, ledger)}"
            )
        answered = {query_id: example_ids for query_id, example_ids in asked.items() if query_id not in aside}
        ends = [sample["finish_reason"] for query_id in answered for sample in ledger[query_id]["samples"]]
        cut = ends.count("length")
        if ends and cut / len(ends) > config.max_truncated_share:
            raise TruncationError(
                f"{plan.step}: {cut} of {len(ends)} samples ({cut / len(ends):.1%}) were cut at "
                f"max_tokens={config.max_tokens}, limit {config.max_truncated_share:.1%}: "
                "raise max_tokens (or max_truncated_share, if cut samples are no harm)"
            )
        counts = {"truncated": cut, "malformed": 0, "completion_tokens": 0, "quarantined": len(aside)}
        opened = bool(opened_part(generation_prefix(tokenizer), config.format))
        rows = response_rows(tokenizer, answered, ledger, config.format, opened, counts)
        made = write_table(store, plan.step, plan.key, RESPONSES, batched(rows), plan.provenance, counts=lambda: counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def response_rows(
    tokenizer: Any,
    asked: dict[str, list[str]],
    done: Mapping[str, dict[str, Any]],
    format: Format,
    opened: bool,
    counts: dict[str, int],
) -> Iterator[dict[str, Any]]:
    """The rows of `responses` in query order, from what the ledger holds; adds their figures to `counts`."""

    def tokens(text: str | None) -> int:
        return count_tokens(tokenizer, text) if text else 0

    for query_id, example_ids in asked.items():
        record = done[query_id]
        for number, sample in enumerate(record["samples"]):
            parsed = parse_response(sample["text"], format, opened)
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
                "thought_tokens": tokens(parsed["thoughts"]),
                "solution_tokens": tokens(parsed["solution"]),
            }
