"""Messages to a chat model behind any OpenAI-compatible endpoint: our own vLLM server, or an API elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from infra.serving.completions import CompletionError, poster, run_all


@dataclass(frozen=True)
class Chat:
    """One conversation to answer."""

    request_id: str
    messages: Sequence[Mapping[str, object]]
    """Turns, oldest first: role and content."""


@dataclass(frozen=True)
class Reply:
    """The model's answer; what a reasoning model thinks before it, where the endpoint tells it apart, is not in it."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


async def chat(
    url: str,
    served_name: str,
    chats: Iterable[Chat],
    *,
    temperature: float,
    max_tokens: int,
    on_reply: Callable[[Chat, Reply], None],
    alive: Callable[[], None],
    headers: Mapping[str, str] | None = None,
    constraint: Mapping[str, Any] | None = None,
    max_in_flight: int = 32,
    attempts: int = 8,
    timeout_s: float = 600,
) -> None:
    """Ask every chat once and hand each reply to `on_reply` as it comes.

    `headers` go with each request and hold the key; `constraint` is vLLM's `structured_outputs`. What may heal (429,
    5xx, a broken connection) is tried again with back-off.

    Raises:
        CompletionError: a request was refused, failed `attempts` times, or was answered in no form of OpenAI's.
    """
    post = poster(alive, attempts)

    async def work(client: httpx.AsyncClient, asked: Chat) -> None:
        payload: dict[str, Any] = {
            "model": served_name,
            "messages": [dict(message) for message in asked.messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        if constraint is not None:
            payload["structured_outputs"] = dict(constraint)
        what = f"chat {asked.request_id}"
        on_reply(asked, _reply(await post(client, "/v1/chat/completions", payload, what), what))

    await run_all(url.rstrip("/").removesuffix("/v1"), chats, work, max_in_flight, timeout_s, headers)


def _reply(answer: dict[str, Any], what: str) -> Reply:
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        return Reply(
            text=(choice["message"]["content"] or "").encode("utf-8", "replace").decode(),  # half a character: "?"
            finish_reason=choice["finish_reason"] or "",
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CompletionError(
            f"{what}: expected an OpenAI chat completion with its usage, got {str(answer)[:500]}"
        ) from error
