"""A judge's verdicts on answers to a benchmark, from any OpenAI-compatible endpoint; a ledger keeps each of them.

The judge sees solutions, never thoughts. Model text is not trusted: it is shown without control tokens of the judge.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evals.problem import Message
from infra.serving.chat_completions import Chat, Reply, chat
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
        description="URL of an OpenAI-compatible endpoint. Its key is BOLT_JUDGE_API_KEY in the environment or block.",
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
        description="Largest share of verdicts that cannot be read even after a second request; the step fails if "
        "there are more (this project's choice).",
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

Verdict = tuple[str | None, float | None]
"""What was read from the judge's answer: a label, a score."""


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
    cannot be read either, the verdict has neither label nor score.
    `counts` in the manifest: asked, asked again, unread, tokens, and the cost in dollars.

    Raises:
        JudgeError: the share of unreadable verdicts exceeds `max_unread_share`; all verdicts stay in the ledger.
        ValueError: two requests have the same id.
        infra.serving.completions.CompletionError: a request was refused.
        infra.serving.vllm_server.ServerError: the judge's server died.
    """
    by_id = {each.request_id: each for each in requests}
    if len(by_id) < len(requests):
        raise ValueError(
            f"{plan.step}: {len(requests)} judgements have only {len(by_id)} ids: a problem's id is duplicated"
        )
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:

        def verdict(request_id: str) -> Verdict | None:
            return by_id[request_id.removesuffix(AGAIN)].read(ledger[request_id]["text"])

        def messages(request_id: str, suffix: str) -> Sequence[Message]:
            first = by_id[request_id].messages
            answer = ledger[request_id]["text"] if suffix else ""
            return [*first, *_once_more(safe(answer))] if answer.strip() else first  # some APIs refuse an empty turn

        for suffix in ("", AGAIN):
            owed = [each for each in by_id if each + suffix not in ledger and (not suffix or verdict(each) is None)]
            if owed:
                safe = neutraliser(judge_model, store, servers)  # the judge may have repeated the answer it judges
                chats = (Chat(each + suffix, messages(each, suffix)) for each in owed)
                with progress(plan.step, lambda: len(ledger), len(by_id), "verdicts"):
                    _ask(judge, judge_model, servers, chats, ledger)
        last = {each: each + AGAIN if each + AGAIN in ledger else each for each in by_id}
        unread = [each for each in by_id if verdict(last[each]) is None]
        if len(unread) > judge.max_unread_share * len(by_id):
            raise JudgeError(
                f"{plan.step}: {len(unread)} of {len(by_id)} verdicts could not be read, even after a second request, "
                f"limit {judge.max_unread_share:.1%}; the judge's answer to {unread[0]!r} ends with "
                f"{ledger[last[unread[0]]]['text'][-300:]!r}: raise max_tokens if it is truncated, use another judge, "
                "or raise max_unread_share to continue without these verdicts"
            )
        counts = _counts(judge, ledger, last, unread)
        rows = (_row(by_id[each], ledger[record_id], verdict(record_id)) for each, record_id in last.items())
        made = write_table(store, plan.step, plan.key, VERDICTS, batched(rows), plan.provenance, counts=counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def _once_more(text: str) -> list[Message]:
    """The turns that ask for the verdict again: at temperature 0 the same prompt would get the same answer."""
    return [{"role": "assistant", "content": text}, {"role": "user", "content": ONCE_MORE}]


def _row(request: JudgeRequest, record: Mapping[str, Any], verdict: Verdict | None) -> dict[str, Any]:
    label, score = verdict or (None, None)
    return {
        "query_id": request.query_id,
        "sample": request.sample,
        "part": request.part,
        "answer": record["text"],
        "label": label,
        "score": score,
        "asks": record["asks"],
        "prompt_tokens": record["prompt_tokens"],
        "completion_tokens": record["completion_tokens"],
    }


def _counts(judge: Judge, ledger: Ledger, last: Mapping[str, str], unread: Sequence[str]) -> dict[str, Any]:
    """The manifest's counts. `last`: by request id, the id of the record that counts."""
    records = [ledger[each] for each in ledger]
    prompt, completion = (sum(record[name] for record in records) for name in ("prompt_tokens", "completion_tokens"))
    return {
        "asked": len(last),
        "asked again": sum(each != record_id for each, record_id in last.items()),
        "unread": len(unread),
        "prompt tokens": prompt,
        "completion tokens": completion,
        "dollars": round((prompt * judge.prompt_price + completion * judge.completion_price) / 1e6, 4),
    }


def _ask(judge: Judge, judge_model: Ref | None, servers: Servers, chats: Iterator[Chat], ledger: Ledger) -> None:
    """Send every chat to the judge and put its reply into the ledger."""
    headers: Mapping[str, str] = {}
    if judge_model is not None:
        server = servers.generation(judge_model)
        url, name, headers, alive = server.url, server.served_name, server.headers, server.check
    else:
        assert judge.url is not None
        assert judge.name is not None
        key = Settings.load().judge_api_key
        url, name, alive = judge.url, judge.name, lambda: None
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}

    def keep(request: Chat, reply: Reply) -> None:
        asks = 2 if request.request_id.endswith(AGAIN) else 1
        ledger.append(request.request_id, {"asks": asks, **asdict(reply)})

    chatting = chat(
        url,
        name,
        chats,
        temperature=judge.temperature,
        max_tokens=judge.max_tokens,
        on_reply=keep,
        alive=alive,
        headers=headers,
        constraint={"regex": judge.verdict_regex} if judge.verdict_regex else None,
        max_in_flight=judge.in_flight,
    )
    asyncio.run(chatting)
