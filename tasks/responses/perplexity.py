"""Perplexity of thoughts under a policy (STILL-2), from the log-probabilities that its vLLM servers give of a prompt.

The thoughts are read where the policy would write them: after the chat prompt of their query and the delimiter that
opens them. The perplexity is exp(-mean log p) over the tokens of the thoughts alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cot_formats.responses import LongFormat, beginning, continuation, opened_part
from infra.serving.completions import Completion, Request, Sampling
from infra.serving.ledger import Ledger
from infra.serving.pool import complete_on
from infra.serving.servers import Servers
from infra.serving.shard_ledger import places, shard_ledger
from infra.steps.progress import progress
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import PERPLEXITIES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import generation_prefix, load_tokenizer, neutralise, prompt_text
from tasks.responses.generate import QuarantineError

log = logging.getLogger(__name__)

COLUMNS = ["query_id", "sample", "thoughts"]
MOST = 700.0  # nats per token; vLLM gives -9999 for an impossible token, whose exponential is no float


class PerplexityConfig(BaseModel):
    """How the perplexity of thoughts is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_flight: int = Field(32, ge=1, description="Concurrent requests per server and shard; 4 shards run at once.")
    max_quarantined_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of thoughts that may be left without a perplexity because they are too long for the "
        "server, or because it refused them, or crashed on them twice; the step fails if there are more, but never for "
        "a single one (this project's choice).",
    )


class Reading(NamedTuple):
    """Thoughts as the policy reads them."""

    ids: list[int]
    """Token ids of the prompt and the thoughts."""
    begin: int
    """Where the thoughts begin in `ids`."""


def reading(tokenizer: Any, query: str, thoughts: str, format: LongFormat) -> Reading:
    """The token ids of a query's chat prompt, the opening of `format`, and the thoughts.

    What the chat template itself opens at the end of the prompt is not repeated.
    """
    prompt = prompt_text(tokenizer, [{"role": "user", "content": query}])
    begun = continuation(beginning(format), opened_part(generation_prefix(tokenizer), format))
    before = tokenizer.encode(prompt + begun, add_special_tokens=False)
    after = tokenizer.encode(neutralise(thoughts, tokenizer), add_special_tokens=False)
    return Reading([*before, *after], len(before))


@step(outside_key=("config.in_flight", "config.max_quarantined_share"), serves={"model": "policy"})
def measure_perplexity(
    plan: Plan,
    store: Store,
    *,
    config: PerplexityConfig,
    texts: Sequence[Ref],
    queries: Ref,
    format: LongFormat,
    model: Ref,
    servers: Servers,
    shard: int = 0,
    shards: int = 1,
) -> Ref:
    """Write the table `perplexities` of a shard: a row for each response of `texts` that has thoughts.

    Args:
        texts: tables with the columns query_id, sample and thoughts, which are shared out row by row.
        queries: a table with the columns query_id and query.
        format: the format in which the policy writes its thoughts.

    Raises:
        QuarantineError: too many thoughts have no perplexity; the ledger keeps what was measured.
        infra.serving.vllm_server.ServerError: no server is left.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}

    def own() -> Iterator[dict[str, Any]]:
        rows = chain.from_iterable(read_rows(store, table, COLUMNS) for table in texts)
        return islice((row for row in rows if row["thoughts"]), shard, None, shards)

    names = [name_of(row) for row in own()]
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:
        owed = {name_of(row): row for row in own() if name_of(row) not in ledger}
        begins: dict[str, int] = {}

        def request_for(name: str) -> Request:
            row = owed[name]
            read = reading(tokenizer, asked[row["query_id"]], row["thoughts"], format)
            begins[name] = read.begin
            return Request(name, read.ids, None)

        def keep(request: Request, completions: list[Completion]) -> None:
            found = completions[0].prompt_log_probs[begins[request.request_id] - 1 :]
            ledger.append(request.request_id, {"log_prob": math.fsum(found), "tokens": len(found)})

        if owed:
            measuring = complete_on(
                servers.policies(model),
                [list(owed)],
                request_for,
                Sampling(n=1, temperature=0, max_tokens=1, prompt_log_probs=True),
                max_in_flight=config.in_flight,
                on_result=keep,
                on_quarantine=partial(quarantine, plan.step, ledger),
            )
            with progress(plan.step, lambda: len(ledger), len(names), "thoughts"):
                asyncio.run(measuring)
        check_quarantined(plan.step, config, ledger, names, places(store, ledger))
        counts = {"measured": 0, "tokens": 0, "quarantined": 0}
        rows = perplexity_rows(own(), ledger, counts)
        schema = PERPLEXITIES
        made = write_table(store, plan.step, plan.key, schema, batched(rows), plan.provenance, counts=lambda: counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def name_of(row: Mapping[str, Any]) -> str:
    """The request id of a response."""
    return f"{row['query_id']}-{row['sample']}"


def quarantine(step: str, ledger: Ledger, request: Request, reason: str) -> None:
    """Log a quarantined request and put it into the ledger, so that it is not sent again."""
    log.warning("%s: request %s is quarantined: it %s", step, request.request_id, reason)
    ledger.append(request.request_id, {"quarantined": reason})


def check_quarantined(step: str, config: PerplexityConfig, ledger: Ledger, names: Sequence[str], where: str) -> None:
    """Raise `QuarantineError` if more thoughts than `max_quarantined_share` have no perplexity; a single one may."""
    reasons = {name: reason for name in names if (reason := ledger[name].get("quarantined"))}
    if len(reasons) > max(1, config.max_quarantined_share * len(names)):
        first, reason = next(iter(reasons.items()))
        raise QuarantineError(
            f"{step}: {len(reasons)} of {len(names)} thoughts have no perplexity, limit "
            f"{config.max_quarantined_share:.1%}; the first is {first}: it {reason}; remove the cause (if they are too "
            "long, raise serving.policy.max_model_len), or raise max_quarantined_share to continue without them "
            f"(delete {where} to send them again)"
        )


def perplexity_rows(rows: Iterator[dict[str, Any]], ledger: Ledger, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The rows of `perplexities`, in the order of the responses; `counts` is added to."""
    for row in rows:
        found = ledger[name_of(row)]
        if "quarantined" in found or not found["tokens"]:
            counts["quarantined"] += 1
            continue
        counts["measured"] += 1
        counts["tokens"] += found["tokens"]
        mean = found["log_prob"] / found["tokens"]
        yield {
            "query_id": row["query_id"],
            "sample": row["sample"],
            "tokens": found["tokens"],
            "perplexity": math.exp(min(-mean, MOST)),
        }
