"""A judge's verdicts on answers to a benchmark, from any OpenAI-compatible endpoint; a ledger keeps each of them.

The judge sees solutions, never thoughts. Model text is not trusted: it is shown without control tokens of the judge.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evals.problem import Message
from infra.errors import BadInput
from infra.serving.chat_completions import Chat, Reply, chat, endpoint, key_header
from infra.serving.completions import DeniedError
from infra.serving.ledger import Ledger
from infra.serving.servers import Servers
from infra.serving.shard_ledger import shard_ledger
from infra.settings import Settings
from infra.steps.progress import progress
from infra.steps.step import Plan
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import VERDICTS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import load_tokenizer, neutralise
from tasks.queries.ask import AGAIN, JudgeError

log = logging.getLogger(__name__)

ONCE_MORE = "I could not find your verdict. State it once more, in exactly the form that you were asked for."
_CONTROL = re.compile(r"<(?=[|｜][^\s<>|｜]+[|｜]>)")  # `<|im_end|>` and the like


class Judge(BaseModel):
    """Which model judges, and how it is prompted."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str | None = Field(
        None,
        description="The judge, if it is to be served here: a local folder, an artifact STEP/KEY, or a hub id "
        "ORG/NAME@REVISION. Otherwise give `url` and `name`.",
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://[^@]+$",
        description="URL of an OpenAI-compatible endpoint, up to the part before /chat/completions (with "
        "`?api-version=DATE` for Azure); /v1 if it has no path. Its key is BOLT_JUDGE_API_KEY in the environment or "
        "block.",
    )
    name: str | None = Field(None, description="Name of the judge at `url`, with its version if it has one.")
    temperature: float = Field(0.0, ge=0, description="Sampling temperature of the judge (0 in all judged benchmarks).")
    max_tokens: int = Field(4096, ge=1, description="Maximum length of a verdict, in tokens (Arena-Hard: 4,096).")
    verdict_regex: str | None = Field(
        None,
        description="Regular expression that the judge's server constrains every verdict to (vLLM only). The authors "
        "of the benchmarks use none; it is for small judges that miss the required form.",
    )
    in_flight: int = Field(32, ge=1, description="Concurrent requests.")
    max_unread_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest share of verdicts that the judge refuses, or that cannot be read even after a second "
        "request; the step fails if there are more (this project's choice).",
    )
    prompt_price: float = Field(0.0, ge=0, description="Price of a million prompt tokens, in dollars.")
    completion_price: float = Field(0.0, ge=0, description="Price of a million completion tokens, in dollars.")

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.url is None) != (self.name is None) or (self.model is None) == (self.url is None):
            raise ValueError(
                "a judge is given either as `model`, to be served here, or as `url` and `name`: set one of the two"
            )
        return self


OUTSIDE_KEY = tuple(
    f"judge.{name}" for name in ("url", "in_flight", "max_unread_share", "prompt_price", "completion_price")
)
"""Settings that change no verdict: a judge of a given name is taken to be the same wherever it is served."""

Verdict = str | float
"""What was read from the judge's answer: a label or a score."""


@dataclass(frozen=True)
class JudgeRequest:
    """A request for one judgement of one answer."""

    query_id: str
    sample: int
    part: str
    """Which judgement of this answer: `turn-2`, `game-1`, ..."""
    messages: Sequence[Message]
    read: Callable[[str], Verdict | None]
    """Reads the verdict from the judge's answer; None if it is malformed."""

    @property
    def request_id(self) -> str:
        return f"{self.query_id} {self.sample} {self.part}"


def neutraliser(judge_model: Ref | None, store: Store, servers: Servers) -> Callable[[str], str]:
    """A function that breaks control tokens in a text: those of the judge served here, else those of usual forms."""
    if judge_model is None:
        return lambda text: _CONTROL.sub("< ", text)
    tokenizer = load_tokenizer(fetch_model(store, judge_model, servers.work_dir))
    return lambda text: neutralise(text, tokenizer)


def solutions(store: Store, responses: Sequence[Ref]) -> dict[str, str]:
    """The solution of each query's single response, by query id; "" if it has none."""
    rows = (row for shard in responses for row in read_rows(store, shard, ["query_id", "solution"]))
    return {row["query_id"]: row["solution"] or "" for row in rows}


def ask_judge(
    plan: Plan,
    store: Store,
    *,
    judge: Judge,
    judge_model: Ref | None,
    servers: Servers,
    requests: Sequence[JudgeRequest],
) -> Ref:
    """Send all requests and write the table `verdicts`, in the order of `requests`.

    If a verdict cannot be read, the judge is asked once more, with its first answer in the history; if the second one
    cannot be read either, the verdict has neither label nor score. The same holds for a verdict that the judge or its
    provider refuses (a content filter, too long a prompt, ...); it is not asked for again.
    `counts` in the manifest: asked, asked again, unread, those of them that were refused, tokens, the cost in dollars,
    and how the requests were changed to suit the endpoint.

    Raises:
        JudgeError: the share of refused and unreadable verdicts exceeds `max_unread_share`; what was answered stays in
            the ledger. Refusals end the step as soon as this is certain.
        BadInput: the endpoint refuses every request.
        ValueError: two requests have the same id.
        infra.serving.completions.CompletionError: a request kept failing.
        infra.serving.vllm_server.ServerError: the judge's server died.
    """
    by_id = {each.request_id: each for each in requests}
    if len(by_id) < len(requests):
        raise ValueError(
            f"{plan.step}: {len(requests)} judgements have only {len(by_id)} ids: a problem's id is duplicated"
        )
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:
        asked = _Asked(plan.step, judge, by_id, ledger)
        for suffix in ("", AGAIN):
            owed = asked.owed(suffix)
            if owed:
                safe = neutraliser(judge_model, store, servers)  # the judge may have repeated the answer it judges
                chats = (Chat(each + suffix, asked.messages(each, suffix, safe)) for each in owed)
                with progress(plan.step, lambda: len(ledger), len(by_id), "verdicts"):
                    _ask(judge, judge_model, servers, chats, asked)
        asked.check_unread()
        made = write_table(
            store, plan.step, plan.key, VERDICTS, batched(asked.rows()), plan.provenance, counts=asked.counts()
        )
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


@dataclass(frozen=True)
class _Asked:
    """What was asked and answered so far. Answers are in the ledger; refused requests are sent again by a later run."""

    step: str
    judge: Judge
    by_id: Mapping[str, JudgeRequest]
    ledger: Ledger
    refused: dict[str, str] = field(default_factory=dict)
    """By the request's id, with its suffix: why the endpoint refused it, or the judge refused to judge."""

    def __post_init__(self) -> None:
        self.refused.update((each, said) for each, record in self.ledger.items() if (said := record["refusal"]))

    def owed(self, suffix: str) -> list[str]:
        """The ids of the requests to send; with the suffix `AGAIN`, for the second time."""
        unsent = [each for each in self.by_id if each + suffix not in self.ledger]
        return [each for each in unsent if not suffix or (self.verdict(each) is None and not self.refusal(each))]

    def messages(self, request_id: str, suffix: str, safe: Callable[[str], str]) -> Sequence[Message]:
        first = self.by_id[request_id].messages
        answer = self.ledger[request_id]["text"] if suffix else ""
        if not answer.strip():  # some APIs refuse an empty turn
            return first
        # At temperature 0 the same prompt would get the same answer.
        return [*first, {"role": "assistant", "content": safe(answer)}, {"role": "user", "content": ONCE_MORE}]

    def last(self, request_id: str) -> Mapping[str, Any] | None:
        """The record of the answer that counts; None if there is no answer."""
        again = request_id + AGAIN
        return self.ledger.get(again if again in self.ledger else request_id)

    def verdict(self, request_id: str) -> Verdict | None:
        record = self.last(request_id)
        return None if record is None or self.refusal(request_id) else self.by_id[request_id].read(record["text"])

    def refusal(self, request_id: str) -> str | None:
        """Why there is no verdict, if its first or second request was refused; else None."""
        return self.refused.get(request_id) or self.refused.get(request_id + AGAIN)

    def asks(self, request_id: str) -> int:
        """How often a verdict was asked for: once or twice."""
        again = request_id + AGAIN
        return 2 if again in self.ledger or again in self.refused else 1

    def keep(self, request: Chat, reply: Reply) -> None:
        """Put an answer into the ledger."""
        self.ledger.append(request.request_id, asdict(reply))
        if reply.refusal:
            self.refuse(request, reply.refusal)

    def refuse(self, request: Chat, reason: str) -> None:
        """Keep the reason for which the endpoint refused a request."""
        log.warning("%s: the judge refuses %r: %s", self.step, request.request_id, reason[:300])
        self.refused[request.request_id] = reason
        self.check_refused()

    def check_refused(self) -> None:
        """Raise `JudgeError` if too many verdicts are refused, whatever may still come."""
        if len(self.refused) > self.judge.max_unread_share * len(self.by_id):
            request_id, reason = next(iter(self.refused.items()))
            raise JudgeError(
                f"{self.step}: the judge refuses {len(self.refused)} of {len(self.by_id)} verdicts, limit "
                f"{self.judge.max_unread_share:.1%}; of {request_id.removesuffix(AGAIN)!r} it said {reason[:500]!r}: "
                "correct what it refuses (the address, name and API key of a judge elsewhere, max_tokens, "
                "verdict_regex), use another judge, or raise max_unread_share to continue without these verdicts"
            )

    def check_unread(self) -> None:
        """Raise `JudgeError` if there are too many verdicts that were refused or cannot be read."""
        self.check_refused()
        unread = self.unread()
        if len(unread) > self.judge.max_unread_share * len(self.by_id):
            first = next(each for each in unread if not self.refusal(each))
            record = self.last(first)
            assert record is not None
            raise JudgeError(
                f"{self.step}: {len(unread)} of {len(self.by_id)} verdicts could not be read, even after a second "
                f"request, limit {self.judge.max_unread_share:.1%}; the judge's answer to {first!r} ends with "
                f"{record['text'][-300:]!r}: raise max_tokens if it is truncated, use another judge, "
                "or raise max_unread_share to continue without these verdicts"
            )

    def unread(self) -> list[str]:
        return [each for each in self.by_id if self.verdict(each) is None]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the table `verdicts`."""
        for request_id, request in self.by_id.items():
            verdict = self.verdict(request_id)
            record = self.last(request_id) or {"text": "", "prompt_tokens": 0, "completion_tokens": 0}
            yield {
                "query_id": request.query_id,
                "sample": request.sample,
                "part": request.part,
                "answer": record["text"],
                "label": verdict if isinstance(verdict, str) else None,
                "score": None if isinstance(verdict, str) else verdict,
                "asks": self.asks(request_id),
                "prompt_tokens": record["prompt_tokens"],
                "completion_tokens": record["completion_tokens"],
                "refusal": self.refusal(request_id),
            }

    def counts(self) -> dict[str, Any]:
        """The manifest's counts."""
        judge, records = self.judge, list(self.ledger.values())
        prompt, completion = (sum(each[name] for each in records) for name in ("prompt_tokens", "completion_tokens"))
        return {
            "asked": len(self.by_id),
            "asked again": sum(self.asks(each) > 1 for each in self.by_id),
            "unread": len(self.unread()),
            "refused": len(self.refused),
            "prompt tokens": prompt,
            "completion tokens": completion,
            "dollars": round((prompt * judge.prompt_price + completion * judge.completion_price) / 1e6, 4),
            "changes": "; ".join(sorted({change for each in records for change in each["changes"]})),
        }


def _ask(judge: Judge, judge_model: Ref | None, servers: Servers, chats: Iterator[Chat], asked: _Asked) -> None:
    """Send every chat to the judge and keep its reply, or the reason for which it was refused."""
    headers: Mapping[str, str] = {}
    if judge_model is not None:
        server = servers.generation(judge_model)
        url, name, headers, alive = server.url, server.served_name, server.headers, server.check
    else:
        assert judge.url is not None
        assert judge.name is not None
        url, name, alive = judge.url, judge.name, lambda: None
        headers = key_header(url, Settings.load().judge_api_key)
    chatting = chat(
        url,
        name,
        chats,
        temperature=judge.temperature,
        max_tokens=judge.max_tokens,
        on_reply=asked.keep,
        on_refused=asked.refuse,
        alive=alive,
        headers=headers,
        constraint={"regex": judge.verdict_regex} if judge.verdict_regex else None,
        max_in_flight=judge.in_flight,
    )
    try:
        asyncio.run(chatting)
    except DeniedError as error:
        raise BadInput(
            f"{asked.step}: {error}. The judge {name!r} was asked at {''.join(endpoint(url)).partition('?')[0]}: check "
            "judge.url (the part before /chat/completions), judge.name, the API key BOLT_JUDGE_API_KEY, and the account"
        ) from None
