"""Ask a chat model to judge queries: one short answer per request, at temperature 0.

The server enforces the form of the answers (vLLM's structured output). Every finished request is kept in a ledger.

The text of a query is not trusted: it cannot spell a control token or close the marks that it is shown between.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
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
from infra.text.templates import filled

log = logging.getLogger(__name__)

AGAIN = " again"  # suffix to the id of the second request, sent if the first answer could not be read
_MARK = re.compile(r"<(?=\s*/?\s*query\b)", re.IGNORECASE)


class JudgeError(RuntimeError):
    """Too many of the judge's answers could not be read."""


class JudgeConfig(BaseModel):
    """How a judge is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shown_tokens: int = Field(
        2048, ge=1, description="Tokens of each query, from its beginning, shown to the judge (this project's choice)."
    )
    max_unread_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Largest share of a shard's queries that the judge's server refuses (such as one that is too "
        "long), or whose answer cannot be read even after a second request; the step fails if there are more.",
    )
    in_flight: int = Field(256, ge=1, description="Concurrent requests per shard; 4 shards run at once.")
    shards: int = Field(
        16, ge=1, le=400, description="Number of shards to judge the queries in; each is a cached task."
    )


OUTSIDE_KEY = ("config.max_unread_share", "config.in_flight", "config.shards")
"""Settings that change no answer."""


@dataclass(frozen=True)
class Question:
    """What the judge is asked, and how its answer is read."""

    constraint: dict[str, Any]
    """vLLM's `structured_outputs`: {regex: ...} or {choice: [...]}."""
    longest: int
    """Bytes of the longest answer that the constraint allows. Every token has at least one, so no answer is truncated
    at this many tokens."""
    expected: str
    """The expected form in words, for error messages."""
    read: Callable[[str], list[str] | None]
    """Returns the labels that an answer gives; None if the answer is malformed."""

    def labels(self, record: Mapping[str, Any]) -> list[str] | None:
        """The labels that an answer in the ledger gives; None if it is malformed or truncated."""
        return self.read(record["text"]) if record["finish_reason"] == "stop" else None


def squeezed(text: str) -> str:
    """The text without white space. A tokenizer of whole words adds spaces where the answer had none."""
    return "".join(text.split())


def delimited(query: str, tokenizer: Any, shown_tokens: int) -> str:
    """At most the first `shown_tokens` tokens of a query, neutralised, between the marks <query> and </query>.

    If the query itself spells one of these marks, its angle bracket becomes a round one.
    """
    safe = _MARK.sub("(", neutralise(query, tokenizer))
    offsets = tokenizer(safe, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    shown = safe[: offsets[shown_tokens - 1][1]] if len(offsets) > shown_tokens else safe
    return f"<query>\n{shown}\n</query>"


def unjudged(store: Store, queries: Ref, field: str, shard: int, shards: int) -> Iterator[dict[str, Any]]:
    """The queries of one shard (every `shards`-th row) whose `field` is not set already."""
    of_shard = islice(read_rows(store, queries), shard, None, shards)
    return (query for query in of_shard if query[field] is None)


def query_turns(
    template: Path, shown_tokens: int, queries: Iterable[Mapping[str, Any]], tokenizer: Any, **fields: str
) -> Iterator[tuple[str, str]]:
    """One request per query: its id, and the user turn made from a template with {query} and other `fields`."""
    for query in queries:
        yield query["query_id"], filled(template, **fields, query=delimited(query["query"], tokenizer, shown_tokens))


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
    """Ask `question` in every request and write the table of judgements, with one row per request, in order.

    If an answer cannot be read, the request is sent once more. If the second one cannot be read either, the labels are
    null. So are those of a request that the server refuses (such as one too long for `max_model_len`).
    `counts` in the manifest: asked, asked again, unread, and those of them that were refused.

    Args:
        turns: given the judge's tokenizer, yields the requests: an id and the user turn.

    Raises:
        JudgeError: the share of refused requests and unreadable answers exceeds `max_unread_share`; all answers stay
            in the ledger. Refusals end the step as soon as this is certain.
        ValueError: two requests have the same id.
        infra.serving.completions.CompletionError: a request kept failing, or every request is refused.
        infra.serving.vllm_server.ServerError: the server died.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    prompts = _prompts(plan.step, tokenizer, turns(tokenizer))
    refused: dict[str, str] = {}  # by request id, with its suffix: why the server refused it

    def refuse(request: Request, reason: str) -> None:
        log.warning("%s: the judge's server refuses request %s: %s", plan.step, request.request_id, reason[:300])
        refused[request.request_id] = reason
        _check_refused(plan.step, config, refused, len(prompts))

    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:
        for suffix in ("", AGAIN):
            unsent = [each for each in prompts if each + suffix not in ledger and each not in refused]
            owed = [each for each in unsent if not suffix or question.labels(ledger[each]) is None]
            if owed:
                requests = (
                    Request(each + suffix, tokenizer.encode(prompts[each], add_special_tokens=False), None)
                    for each in owed
                )
                with progress(plan.step, lambda: len(ledger), len(prompts), "requests"):
                    _ask(servers, model, question, requests, config.in_flight, ledger, refuse)
        last = {each: each + AGAIN if each + AGAIN in ledger else each for each in prompts if each not in refused}
        again = sum(each + AGAIN in ledger or each + AGAIN in refused for each in prompts)
        unread = _check_unread(plan.step, config, question, ledger, last, len(prompts))
        counts = {"asked": len(prompts), "asked again": again, "unread": unread, "refused": len(refused)}
        rows = (
            {
                "request_id": each,
                "answer": ledger[last[each]]["text"] if each in last else "",
                "labels": question.labels(ledger[last[each]]) if each in last else None,
                "refusal": refused.get(each) or refused.get(each + AGAIN),
            }
            for each in prompts
        )
        made = write_table(store, plan.step, plan.key, JUDGEMENTS, batched(rows), plan.provenance, counts=counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def _prompts(step: str, tokenizer: Any, turns: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The chat prompts by request id, as text, since token ids take ten times the memory."""
    prompts: dict[str, str] = {}
    for request_id, turn in turns:
        if request_id in prompts:
            raise ValueError(
                f"{step}: request {request_id} comes twice: remove the duplicate from the table of queries"
            )
        prompts[request_id] = prompt_text(tokenizer, [{"role": "user", "content": turn}])
    return prompts


def _ask(
    servers: Servers,
    model: Ref,
    question: Question,
    requests: Iterator[Request],
    in_flight: int,
    ledger: Ledger,
    refuse: Callable[[Request, str], None],
) -> None:
    """Put the answer to every request into the ledger, and pass what the server refuses to `refuse`."""
    server = servers.generation(model)
    completing = complete(
        server.url,
        server.served_name,
        requests,
        Sampling(n=1, temperature=0, max_tokens=question.longest + 1, constraint=question.constraint),
        max_in_flight=in_flight,
        on_result=partial(_keep_answer, ledger),
        on_refused=refuse,
        alive=server.check,
        headers=server.headers,
    )
    asyncio.run(completing)


def _keep_answer(ledger: Ledger, request: Request, completions: list[Completion]) -> None:
    answer = completions[0]
    ledger.append(request.request_id, {"text": answer.text, "finish_reason": answer.finish_reason})


def _check_refused(step: str, config: JudgeConfig, refused: Mapping[str, str], asked: int) -> None:
    """Raise `JudgeError` if the server refused too many requests, whatever may still come."""
    if len(refused) > config.max_unread_share * asked:
        request_id, reason = next(iter(refused.items()))
        raise JudgeError(
            f"{step}: the judge's server refuses {len(refused)} of {asked} requests, limit "
            f"{config.max_unread_share:.1%}; of {request_id.removesuffix(AGAIN)} it said {reason[:500]!r}: raise "
            "serving.policy.max_model_len or lower shown_tokens if it is too long, use a server that enforces "
            "structured outputs, or raise max_unread_share"
        )


def _check_unread(
    step: str, config: JudgeConfig, question: Question, ledger: Ledger, last: Mapping[str, str], asked: int
) -> int:
    """The number of requests without a readable answer. Raises `JudgeError` if there are too many.

    `last`: by request id, the id of the record that counts; none of a refused request. `asked`: the number of requests.
    """
    unread = [record_id for record_id in last.values() if question.labels(ledger[record_id]) is None]
    count = len(unread) + asked - len(last)
    if unread and count / asked > config.max_unread_share:
        raise JudgeError(
            f"{step}: {count} of {asked} answers of the judge ({count / asked:.1%}) could not be "
            f"read, even after a second request, limit {config.max_unread_share:.1%}; the answer to "
            f"{unread[0].removesuffix(AGAIN)} was {ledger[unread[0]]['text'][:200]!r}, expected {question.expected}: "
            "use a server that enforces structured outputs, use another judge, or raise max_unread_share"
        )
    return count


def with_labels(
    store: Store, queries: Ref, field: str, judgements: Sequence[Ref]
) -> Iterator[tuple[dict[str, Any], list[str] | None]]:
    """Stream every query, in order, with the labels that the judge gave it; None if its answer could not be read.

    A query whose `field` was set already was not asked about and comes with no labels.

    Args:
        judgements: the shards, in order.

    Raises:
        ValueError: the judgements do not belong to these queries.
    """
    shards = [read_rows(store, each) for each in judgements]
    for row, query in enumerate(read_rows(store, queries)):
        if query[field] is not None:
            yield query, []
            continue
        found: Mapping[str, Any] = next(shards[row % len(shards)], {"request_id": "no more rows"})
        if found["request_id"] != query["query_id"]:
            raise ValueError(
                f"judgements of {queries.step}/{queries.key}, row {row}: expected query {query['query_id']}, "
                f"found {found['request_id']}"
            )
        yield query, found["labels"]
