"""Sends conversations to a chat model behind any OpenAI-compatible endpoint: our own vLLM server or a remote API.

Providers differ in what they take. What an endpoint refuses (`max_tokens`, a temperature, a system turn) is learnt from
its first refusal, and later requests do without.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import SecretStr

from infra.serving.completions import Client, RefusedError, run_all
from infra.serving.failures import without_key
from infra.text.chat import without_system_turn

log = logging.getLogger(__name__)

TIMEOUT_S = 600.0  # of one attempt
_PATH = "/chat/completions"
_FILTERED = re.compile(r"content_filter|safety|refusal|prohibited|blocklist|sensitive|error", re.IGNORECASE)

Payload = dict[str, Any]


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
    """0 if the endpoint does not say; so is `completion_tokens`."""
    completion_tokens: int
    refusal: str | None = None
    """Why there is no answer, or only a part of one: the model refused, or a content filter cut it off."""
    changes: tuple[str, ...] = ()
    """How the request differed from what was asked for, since the endpoint refuses some settings."""


async def chat(
    url: str,
    served_name: str,
    chats: Iterable[Chat],
    *,
    temperature: float,
    max_tokens: int,
    on_reply: Callable[[Chat, Reply], None],
    on_refused: Callable[[Chat, str], None],
    alive: Callable[[], None],
    headers: Mapping[str, str] | None = None,
    constraint: Mapping[str, Any] | None = None,
    max_in_flight: int = 32,
    attempts: int = 8,
) -> None:
    """Send every chat once and pass each reply to `on_reply` as it arrives.

    Until one is answered, they are sent one at a time, so that a wrong key or setting costs one request. After that, a
    404 is a refusal of one chat: a router may find no provider that takes it. Transient failures (429, 5xx, a broken
    connection) are retried with exponential back-off, or when the endpoint says.

    Args:
        url: the endpoint's base address, see `endpoint`.
        max_tokens: maximum tokens per reply.
        on_refused: gets each chat that the endpoint refuses (a content filter, too long a prompt, ...) or answers with
            anything but a chat completion, and the reason.
        alive: see `infra.serving.completions.Client`.
        headers: sent with every request; they hold the API key (see `key_header`).
        constraint: vLLM's `structured_outputs`, which other endpoints may refuse.
        attempts: attempts per chat.

    Raises:
        DeniedError: the endpoint refuses whatever is sent: the key, the address or the name is wrong.
        CompletionError: a request failed `attempts` times.
    """
    base, path = endpoint(url)
    fixed: Payload = {"model": served_name, "temperature": temperature, "max_tokens": max_tokens}
    if constraint is not None:
        fixed["structured_outputs"] = dict(constraint)
    async with Client(
        base, max_in_flight=max_in_flight, alive=alive, headers=headers, attempts=attempts, timeout_s=TIMEOUT_S
    ) as client:
        asking, first = _Asking(client, path), asyncio.Lock()

        async def ask(each: Chat) -> None:
            payload = {**fixed, "messages": [dict(message) for message in each.messages]}
            what = f"chat {each.request_id}"
            try:
                reply = await asking.reply(payload, what)
            except RefusedError as error:
                on_refused(each, _storable(without_key(error.reason, headers or {})))
            else:
                on_reply(each, reply)

        async def work(each: Chat) -> None:
            if not asking.answered:
                async with first:
                    if not asking.answered:
                        await ask(each)
                        return
            await ask(each)

        await run_all(chats, work, max_in_flight)


def endpoint(url: str) -> tuple[str, str]:
    """The base address and the path, with its query, to which the chats of an endpoint are posted.

    A URL's own path is its base path (`https://host/api/v3`, `https://host/openai/deployments/NAME?api-version=DATE`);
    a URL without one gets `/v1`. It may also be the whole address, up to `/chat/completions`.
    """
    parts = urlsplit(url)
    given = parts.path.rstrip("/")
    base = given.removesuffix(_PATH) if given.endswith(_PATH) else given or "/v1"
    return f"{parts.scheme}://{parts.netloc}{base}", _PATH + (f"?{parts.query}" if parts.query else "")


def key_header(url: str, key: SecretStr | None) -> dict[str, str]:
    """The header with the API key. Azure, whose URLs have an `api-version`, has a name of its own for it."""
    if key is None:
        return {}
    if "api-version" in parse_qs(urlsplit(url).query):
        return {"api-key": key.get_secret_value()}
    return {"Authorization": f"Bearer {key.get_secret_value()}"}


# ---- what an endpoint does not take


def _renamed_length(payload: Payload) -> Payload:
    renamed = {"max_tokens": "max_completion_tokens"}
    return {renamed.get(name, name): value for name, value in payload.items()}


def _without_temperature(payload: Payload) -> Payload:
    return {name: value for name, value in payload.items() if name != "temperature"}


def _without_system(payload: Payload) -> Payload:
    return {**payload, "messages": without_system_turn(payload["messages"])}


_SYSTEM_TURN = re.compile(  # a "safety system" and "role-play" are something else
    r"""\b(system|developer)[ '"`_]*((is|are) )?(not )?(message|turn|instruction|prompt|support)"""
    r"""|support\w*[ '"`]+(system|developer)|\broles?\b(?![ -]?play)""",
    re.IGNORECASE,
)
_CHANGES: Mapping[str, tuple[re.Pattern[str], Callable[[Payload], Payload]]] = {
    "max_completion_tokens in place of max_tokens": (re.compile(r"max_(completion_)?tokens", re.I), _renamed_length),
    "no temperature (its own default)": (re.compile("temperature", re.I), _without_temperature),
    "the system turn as a part of the user's": (_SYSTEM_TURN, _without_system),
}
"""By description: what a refusal mentions, and the change to the payload that may help."""


class _Asking:
    """Posts to one endpoint. What it refuses is learnt once a request without it is answered."""

    def __init__(self, client: Client, path: str) -> None:
        self.answered = False
        self._client, self._path = client, path
        self._learnt: list[str] = []

    async def reply(self, payload: Payload, what: str) -> Reply:
        """The reply to a payload, which is changed if it has to be. Raises as `Client.post`."""
        made = list(self._learnt)
        while True:
            changed = _changed(payload, made)
            try:
                reply = _reply(await self._client.post(self._path, changed, what), what)
            except RefusedError as error:
                change = next((each for each in _CHANGES if _may_help(each, error, changed)), None)
                if change is None:
                    raise
                made.append(change)
            else:
                for change in made:
                    if change not in self._learnt:
                        log.warning("the endpoint of the chats refuses a setting and is sent %s", change)
                        self._learnt.append(change)
                self.answered = True
                self._client.denied.discard(404)  # from now on, it concerns one chat
                return replace(reply, changes=tuple(made))


def _changed(payload: Payload, changes: Iterable[str]) -> Payload:
    for change in changes:
        payload = _CHANGES[change][1](payload)
    return payload


def _may_help(change: str, error: RefusedError, payload: Payload) -> bool:
    mention, make = _CHANGES[change]
    return mention.search(error.complaint) is not None and make(payload) != payload


# ---- what an endpoint answers


def _reply(answer: Any, what: str) -> Reply:
    """Raises `RefusedError` if the answer is not a chat completion."""
    try:
        choice = answer["choices"][0]
        message, finish_reason = choice["message"], str(choice.get("finish_reason") or "")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        kinds = [part.get("type", "text" if "text" in part else None) for part in parts]
        text = "".join(part["text"] for part, kind in zip(parts, kinds, strict=True) if kind in ("text", "output_text"))
        said = next((part["refusal"] for part in parts if part.get("type") == "refusal"), message.get("refusal"))
        refusal = str(said) if said and not text.strip() else None
        if _FILTERED.search(finish_reason):
            refusal = refusal or f"finish_reason {finish_reason}"
        prompt, completion, total = (_tokens(answer, f"{kind}_tokens") for kind in ("prompt", "completion", "total"))
        return Reply(
            text=_storable(text),
            finish_reason=_storable(finish_reason),
            prompt_tokens=prompt,
            completion_tokens=completion or max(0, total - prompt),
            refusal=refusal and _storable(refusal),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RefusedError(f"{what}: expected an OpenAI chat completion, got {str(answer)[:500]}") from error


def _tokens(answer: Mapping[str, Any], name: str) -> int:
    """A count of the answer's `usage`; 0 if it gives none, or one that cannot be."""
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        if 0 <= (count := int(answer["usage"][name])) < 2**31:
            return count
    return 0


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # a lone surrogate: "?"
