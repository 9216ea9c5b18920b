"""Questions to a chat model that judges queries: one short answer a request, at temperature 0.

The server enforces the answer's form (vLLM's structured output); each finished request is kept in a ledger.

The text of a query is not trusted: it can spell no control token and cannot close the marks that it is shown between.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.serving.completions import Completion, Request, Sampling, complete
from infra.serving.ledger import Ledger
from infra.serving.servers import Servers
from infra.serving.shard_ledger import shard_ledger
from infra.steps.progress import progress
from infra.steps.step import Plan
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import JUDGEMENTS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import load_tokenizer, neutralise, prompt_text

AGAIN = " again"  # ends the id of the second request for an answer that could not be read
_MARK = re.compile(r"<(?=\s*/?\s*query\b)", re.IGNORECASE)


class JudgeError(RuntimeError):
    """Too many of the judge's answers could not be read."""


class JudgeConfig(BaseModel):
    """How a judge is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shown_tokens: int = Field(
        2048, ge=1, description="Tokens of a query that the judge reads, from its beginning (this project's choice)."
    )
    max_unread_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Largest share of a shard's queries whose answer cannot be read, asked twice; more fail the step.",
    )
    in_flight: int = Field(256, ge=1, description="Requests under way at once, per shard; 4 shards run at once.")
    shards: int = Field(16, ge=1, le=400, description="Pieces that the queries are judged in; each is a cached task.")


OUTSIDE_KEY = ("config.max_unread_share", "config.in_flight", "config.shards")
"""Settings that change no answer."""


@dataclass(frozen=True)
class Question:
    """What is asked of the judge, and how its answer is read."""

    constraint: dict[str, Any]
    """vLLM's `structured_outputs`: {regex: ...} or {choice: [...]}."""
    longest: int
    """Bytes of the longest answer that the constraint allows; no token is shorter than a byte, so no answer is cut."""
    expected: str
    """The form in words, for errors."""
    read: Callable[[str], list[str] | None]
    """The labels that an answer gives; None for one off the form."""


def squeezed(text: str) -> str:
    """Without white space: decoding puts blanks where a tokenizer of whole words saw none."""
    return "".join(text.split())


def quoted(query: str, tokenizer: Any, shown_tokens: int) -> str:
    """A query between the marks <query> and </query>: at most its first `shown_tokens` tokens, harmless.

    Where it spells a mark itself, the angle bracket becomes a round one.
    """
    safe = _MARK.sub("(", neutralise(query, tokenizer))
    offsets = tokenizer(safe, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    shown = safe[: offsets[shown_tokens - 1][1]] if len(offsets) > shown_tokens else safe
    return f"<query>\n{shown}\n</query>"


def unjudged(store: Store, queries: Ref, field: str, shard: int, shards: int) -> Iterator[dict[str, Any]]:
    """The queries of one shard (every `shards`-th row) that do not state `field` already."""
    for row, query in enumerate(read_rows(store, queries)):
        if row % shards == shard and query[field] is None:
            yield query


def judge(
    plan: Plan,
    store: Store,
    *,
    config: JudgeConfig,
    model: Ref,
    servers: Servers,
    question: Question,
    turns: Callable[[Any], Iterator[tuple[str, str]]],
) -> Ref:
    """Ask `question` once a request and write the table of judgements: one row a request, in order.

    `turns(tokenizer)` gives the requests: an id and the user turn. An answer off the form is asked for once more; one
    that is off it again has null labels. `counts` in the manifest: asked, asked again, unread.

    Raises:
        JudgeError: a larger share than `max_unread_share` is unread; all answers stay in the ledger.
        ValueError: a request's id comes twice.
        infra.serving.completions.CompletionError: a request was refused (say, too long for `max_model_len`).
        infra.serving.vllm_server.ServerError: the server died.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    prompts: dict[str, str] = {}  # tokenised when asked, since ids take ten times the memory
    for request_id, turn in turns(tokenizer):
        if request_id in prompts:
            raise ValueError(f"{plan.step}: {request_id} is to be judged twice: remove the duplicate from its table")
        prompts[request_id] = prompt_text(tokenizer, [{"role": "user", "content": turn}])
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:

        def labels(asked: str) -> list[str] | None:
            record = ledger[asked]
            return question.read(record["text"]) if record["finish_reason"] == "stop" else None

        for suffix in ("", AGAIN):
            owed = [each for each in prompts if each + suffix not in ledger and (not suffix or labels(each) is None)]
            if owed:
                requests = (
                    Request(each + suffix, tokenizer.encode(prompts[each], add_special_tokens=False), None)
                    for each in owed
                )
                with progress(plan.step, lambda: len(ledger), len(prompts), "requests"):
                    _ask(servers, model, question, requests, config.in_flight, ledger)
        last = {each: each + AGAIN if each + AGAIN in ledger else each for each in prompts}
        unread = [each for each in prompts if labels(last[each]) is None]
        if prompts and len(unread) / len(prompts) > config.max_unread_share:
            raise JudgeError(
                f"{plan.step}: {len(unread)} of {len(prompts)} answers of the judge ({len(unread) / len(prompts):.1%}) "
                f"could not be read, asked twice, limit {config.max_unread_share:.1%}; to {unread[0]} it answered "
                f"{ledger[last[unread[0]]]['text'][:200]!r}, expected {question.expected}: take a server that enforces "
                "structured outputs, another judge, or raise max_unread_share"
            )
        counts = {"asked": len(prompts), "asked again": sum(e != each for each, e in last.items())}
        counts["unread"] = len(unread)
        rows = (
            {"request_id": each, "answer": ledger[asked]["text"], "labels": labels(asked)}
            for each, asked in last.items()
        )
        made = write_table(store, plan.step, plan.key, JUDGEMENTS, batched(rows), plan.provenance, counts=counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def _ask(
    servers: Servers, model: Ref, question: Question, requests: Iterator[Request], in_flight: int, ledger: Ledger
) -> None:
    """Put the answer to every request into the ledger."""
    server = servers.generation(model)
    sampling = Sampling(n=1, temperature=0, max_tokens=question.longest + 1, constraint=question.constraint)

    def keep(request: Request, completions: list[Completion]) -> None:
        answer = completions[0]
        ledger.append(request.request_id, {"text": answer.text, "finish_reason": answer.finish_reason})

    asking = complete(
        server.url,
        server.served_name,
        requests,
        sampling,
        max_in_flight=in_flight,
        on_result=keep,
        alive=server.check,
    )
    asyncio.run(asking)


def with_labels(
    store: Store, queries: Ref, field: str, judgements: Sequence[Ref]
) -> Iterator[tuple[dict[str, Any], list[str] | None]]:
    """Every query in order with the labels that the judge gave it, streamed; None for one whose answer was unread.

    A query that states `field` was not asked about and comes with no labels. `judgements` are the shards in order.

    Raises:
        ValueError: the judgements are not of these queries.
    """
    shards = [read_rows(store, each) for each in judgements]
    for row, query in enumerate(read_rows(store, queries)):
        if query[field] is not None:
            yield query, []
            continue
        found: Mapping[str, Any] = next(shards[row % len(shards)], {"request_id": "no more row"})
        if found["request_id"] != query["query_id"]:
            raise ValueError(
                f"judgements of {queries.step}/{queries.key}, row {row}: expected query {query['query_id']}, "
                f"found {found['request_id']}"
            )
        yield query, found["labels"]
