"""Sends conversations to a chat model behind any OpenAI-compatible endpoint: our own vLLM server or a remote API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.serving.completions import Client, CompletionError, run_all

TIMEOUT_S = 600.0  # of one attempt


@dataclass(frozen=True)
class Chat:
    """One conversation to answer."""

    request_id: str
    messages: Sequence[Mapping[str, object]]
    """Turns, oldest first, each with `role` and `content`."""


@dataclass(frozen=True)
class Reply:
    """The model's answer, without the thoughts of a reasoning model if the endpoint returns them separately."""

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
) -> None:
    """Send every chat once and pass each reply to `on_reply` as it arrives.

    Transient failures (429, 5xx, a broken connection) are retried with exponential back-off.

    Args:
        url: the endpoint's base address, with or without `/v1`.
        max_tokens: maximum tokens per reply.
        alive: see `infra.serving.completions.Client`.
        headers: sent with every request; they hold the API key.
        constraint: vLLM's `structured_outputs`, which other endpoints may refuse.
        attempts: attempts per chat.

    Raises:
        CompletionError: a request was refused, failed `attempts` times, or got a response that is not an OpenAI chat
            completion.
    """
    url = url.rstrip("/").removesuffix("/v1")
    async with Client(
        url, max_in_flight=max_in_flight, alive=alive, headers=headers, attempts=attempts, timeout_s=TIMEOUT_S
    ) as client:

        async def work(each: Chat) -> None:
            payload: dict[str, Any] = {
                "model": served_name,
                "messages": [dict(message) for message in each.messages],
                "temperature": temperature,
                "max_tokens": max_tokens,
            }
            if constraint is not None:
                payload["structured_outputs"] = dict(constraint)
            what = f"chat {each.request_id}"
            on_reply(each, _reply(await client.post("/v1/chat/completions", payload, what), what))

        await run_all(chats, work, max_in_flight)


def _reply(answer: dict[str, Any], what: str) -> Reply:
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        return Reply(
            text=(choice["message"]["content"] or "").encode("utf-8", "replace").decode(),  # a lone surrogate: "?"
            finish_reason=choice["finish_reason"] or "",
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CompletionError(
            f"{what}: expected an OpenAI chat completion with its usage, got {str(answer)[:500]}"
        ) from error
