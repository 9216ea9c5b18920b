"""A judge's verdicts on answers to a benchmark: asked of any OpenAI-compatible endpoint, each kept in a ledger.

The judge sees solutions, never thoughts. Model text is not trusted: it can spell no control token of the judge's.
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
A_JUDGE = "a local folder, an artifact STEP/KEY, or a hub id ORG/NAME@REVISION; served here"


class Judge(BaseModel):
    """Who judges, and how it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str | None = Field(None, description=f"The judge: {A_JUDGE}. Or give `url` and `name`.")
    url: str | None = Field(
        None,
        pattern=r"^https?://[^@]+$",
        description="An OpenAI-compatible endpoint. Its key is BOLT_JUDGE_API_KEY of the environment or block.",
    )
    name: str | None = Field(None, description="The judge's name at `url`, with its version where it has one.")
    temperature: float = Field(0.0, ge=0, description="Sampling temperature of the judge (all five benchmarks: 0).")
    max_tokens: int = Field(4096, ge=1, description="Longest verdict, in tokens (Arena-Hard: 4,096).")
    verdict_regex: str | None = Field(
        None,
        description="A regular expression that the judge's server holds every verdict to (vLLM alone). The authors use "
        "none: it is for small judges that miss the form.",
    )
    in_flight: int = Field(32, ge=1, description="Requests under way at once.")
    max_unread_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest share of verdicts that cannot be read, asked twice; more fail the step (this project's "
        "choice).",
    )
    prompt_price: float = Field(0.0, ge=0, description="Dollars for a million prompt tokens.")
    completion_price: float = Field(0.0, ge=0, description="Dollars for a million completion tokens.")

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.url is None) != (self.name is None) or (self.model is None) == (self.url is None):
            raise ValueError("a judge is either `model`, served here, or `url` and `name`: give one of the two")
        return self


OUTSIDE_KEY = tuple(
    f"judge.{name}" for name in ("url", "in_flight", "max_unread_share", "prompt_price", "completion_price")
)
"""Settings that change no verdict: a model of one name is taken to be the same wherever it is served."""

Verdict = tuple[str | None, float | None]
"""What is read of the judge's answer: a label, a score."""


@dataclass(frozen=True)
class Asked:
    """One judgement on one answer."""

    query_id: str
    sample: int
    part: str
    """Which of the judgements on this answer: `turn-2`, `game-1`, ..."""
    messages: Sequence[Message]
    read: Callable[[str], Verdict | None]
    """What the judge's answer says; None for one off the form."""

    @property
    def request_id(self) -> str:
        return f"{self.query_id} {self.sample} {self.part}"


def harmless(judge_model: Ref | None, store: Store, servers: Servers) -> Callable[[str], str]:
    """What makes a text safe to show: no control token of the judge served here, or of the usual forms, is left."""
    if judge_model is None:
        return lambda text: _CONTROL.sub("< ", text)
    tokenizer = load_tokenizer(fetch_model(store, judge_model, servers.work_dir))
    return lambda text: neutralise(text, tokenizer)


def solutions(store: Store, responses: Sequence[Ref]) -> dict[str, str]:
    """The solution of each query's one response; "" where it has none."""
    rows = (row for shard in responses for row in read_rows(store, shard, ["query_id", "solution"]))
    return {row["query_id"]: row["solution"] or "" for row in rows}


def ask_judge(
    plan: Plan,
    store: Store,
    *,
    judge: Judge,
    judge_model: Ref | None,
    servers: Servers,
    asked: Sequence[Asked],
) -> Ref:
    """Ask for every judgement and write the table `verdicts`, in the order of `asked`.

    A verdict that cannot be read is asked for once more, after what the judge said; one that cannot be read then has
    neither label nor score.
    `counts` in the manifest: asked, asked again, unread, tokens, and the cost in dollars.

    Raises:
        JudgeError: a larger share than `max_unread_share` is unread; all verdicts stay in the ledger.
        ValueError: a judgement is asked twice.
        infra.serving.completions.CompletionError: a request was refused.
        infra.serving.vllm_server.ServerError: the judge's server died.
    """
    by_id = {each.request_id: each for each in asked}
    if len(by_id) < len(asked):
        raise ValueError(f"{plan.step}: {len(asked)} judgements have {len(by_id)} ids: a problem's id comes twice")
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:

        def verdict(request_id: str) -> Verdict | None:
            return by_id[request_id.removesuffix(AGAIN)].read(ledger[request_id]["text"])

        def told(request_id: str, suffix: str) -> Sequence[Message]:
            messages = by_id[request_id].messages
            said = ledger[request_id]["text"] if suffix else ""
            return [*messages, *_once_more(safe(said))] if said.strip() else messages  # some APIs take no empty turn

        for suffix in ("", AGAIN):
            owed = [each for each in by_id if each + suffix not in ledger and (not suffix or verdict(each) is None)]
            if owed:
                safe = harmless(judge_model, store, servers)  # what the judge said can repeat an answer
                chats = (Chat(each + suffix, told(each, suffix)) for each in owed)
                with progress(plan.step, lambda: len(ledger), len(by_id), "verdicts"):
                    _ask(judge, judge_model, servers, chats, ledger)
        last = {each: each + AGAIN if each + AGAIN in ledger else each for each in by_id}
        unread = [each for each in by_id if verdict(last[each]) is None]
        if len(unread) > judge.max_unread_share * len(by_id):
            raise JudgeError(
                f"{plan.step}: {len(unread)} of {len(by_id)} verdicts could not be read, asked twice, limit "
                f"{judge.max_unread_share:.1%}; to {unread[0]!r} the judge answered "
                f"{ledger[last[unread[0]]]['text'][-300:]!r}: raise max_tokens if it is cut, take another judge, "
                "or raise max_unread_share to count them as unread"
            )
        counts = _counts(judge, ledger, last, unread)
        rows = (_row(by_id[each], ledger[asked_last], verdict(asked_last)) for each, asked_last in last.items())
        made = write_table(store, plan.step, plan.key, VERDICTS, batched(rows), plan.provenance, counts=counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def _once_more(text: str) -> list[Message]:
    """The turns that ask for a verdict again: at temperature 0 the same prompt would bring the same answer."""
    return [{"role": "assistant", "content": text}, {"role": "user", "content": ONCE_MORE}]


def _row(asked: Asked, record: Mapping[str, Any], verdict: Verdict | None) -> dict[str, Any]:
    label, score = verdict or (None, None)
    return {
        "query_id": asked.query_id,
        "sample": asked.sample,
        "part": asked.part,
        "answer": record["text"],
        "label": label,
        "score": score,
        "asks": record["asks"],
        "prompt_tokens": record["prompt_tokens"],
        "completion_tokens": record["completion_tokens"],
    }


def _counts(judge: Judge, ledger: Ledger, last: Mapping[str, str], unread: Sequence[str]) -> dict[str, Any]:
    records = [ledger[each] for each in ledger]
    prompt, completion = (sum(record[name] for record in records) for name in ("prompt_tokens", "completion_tokens"))
    return {
        "asked": len(last),
        "asked again": sum(each != asked for each, asked in last.items()),
        "unread": len(unread),
        "prompt tokens": prompt,
        "completion tokens": completion,
        "dollars": round((prompt * judge.prompt_price + completion * judge.completion_price) / 1e6, 4),
    }


def _ask(judge: Judge, judge_model: Ref | None, servers: Servers, chats: Iterator[Chat], ledger: Ledger) -> None:
    """Put the reply to every chat into the ledger."""
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

    def keep(asked: Chat, reply: Reply) -> None:
        asks = 2 if asked.request_id.endswith(AGAIN) else 1
        ledger.append(asked.request_id, {"asks": asks, **asdict(reply)})

    asking = chat(
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
    asyncio.run(asking)
