"""Clients of a running vLLM server: sampled completions and reward-model scores.

Requests are bounded in flight, transient failures are retried, a refusal names the request, and a dead server surfaces
as the error that `alive` raises (with the server's last log lines), never as a time-out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import httpx
from pydantic import BaseModel, Field
from tenacity import (
    AsyncRetrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from infra.processes.watchdog import refuse_when_ending

_log = logging.getLogger(__name__)
_TRANSIENT_STATUS = {408, 425, 429}
IDLE_S = 30.0
"""How long a connection is kept without a request: longer than a busy machine's pauses, after which one that was just
taken would be closed as idle; shorter than the minute after which balancers drop one in silence."""
_Item = TypeVar("_Item")


class CompletionError(RuntimeError):
    """A request was refused, kept failing, or was answered in an unexpected form; the text names the request."""


class _TransientError(CompletionError):
    """Worth another attempt."""


class UnreachableError(_TransientError):
    """The connection to the server failed or broke."""


@dataclass(frozen=True)
class Request:
    """One prompt to sample from."""

    request_id: str
    prompt_ids: tuple[int, ...] | list[int]
    seed: int | None
    """Seed of this request's samples; must be None on CPU, where a seeded request ends the engine."""


class Sampling(BaseModel, frozen=True, extra="forbid"):
    """How to sample; the defaults are the paper's online sampling (stage 3)."""

    n: int = Field(8, gt=0, description="Samples a prompt")
    temperature: float = Field(1.0, ge=0, description="Softmax temperature; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling mass")
    max_tokens: int = Field(gt=0, description="Most tokens a sample, end token included")
    stop_token_ids: tuple[int, ...] = Field(
        (), description="Token ids that end a sample, beside the model's own end tokens"
    )
    constraint: dict[str, Any] | None = Field(
        None,
        description="What the server holds the text to (vLLM's `structured_outputs`): {regex: ...}, {choice: [...]}",
    )


@dataclass(frozen=True)
class Completion:
    """One sample."""

    text: str
    """Decoded text without the end token; other special tokens are kept, so that format rules can see them."""
    finish_reason: str
    """`stop` (an end token) or `length` (cut at `max_tokens` or the model's length)."""
    token_ids: tuple[int, ...]
    """Sampled ids, the end token included."""
    prompt_tokens: int

    @property
    def tokens(self) -> int:
        """Number of sampled tokens, the end token included."""
        return len(self.token_ids)


class Post(Protocol):
    """Post a body to a path and return the answer's JSON; `what` names the request in errors, `name` in the server's
    log."""

    async def __call__(
        self, client: httpx.AsyncClient, path: str, payload: dict[str, Any], what: str, name: str | None = None
    ) -> dict[str, Any]: ...


async def complete(
    url: str,
    served_name: str,
    requests: Iterable[Request],
    sampling: Sampling,
    *,
    max_in_flight: int,
    on_result: Callable[[Request, list[Completion]], None],
    alive: Callable[[], None],
    attempts: int = 5,
    timeout_s: float = 3600,
) -> None:
    """Sample `sampling.n` completions for every request and hand each finished request to `on_result` (one call at a
    time).

    `requests` is consumed lazily, at most `max_in_flight` ahead. `alive` is called before every attempt and after
    every failure and raises if the server died (`VllmServer.check`). Raises `CompletionError` for a refused request
    (HTTP 4xx, at once) and for one that failed `attempts` times; whatever `on_result` raises ends the run. `timeout_s`
    bounds one HTTP request, in seconds.
    """
    post = poster(alive, attempts)

    async def work(client: httpx.AsyncClient, request: Request) -> None:
        on_result(request, await _sample(post, client, served_name, request, sampling))

    await run_all(url, requests, work, max_in_flight, timeout_s)


Ask = Callable[[httpx.AsyncClient, Request], Awaitable[list[Completion]]]


def sampler(served_name: str, sampling: Sampling, alive: Callable[[], None], attempts: int = 5) -> Ask:
    """What asks a server one request, as `complete` does; raises as it, and `UnreachableError` where the last of the
    attempts found nobody."""
    post = poster(alive, attempts)

    async def ask(client: httpx.AsyncClient, request: Request) -> list[Completion]:
        return await _sample(post, client, served_name, request, sampling)

    return ask


async def _sample(
    post: Post, client: httpx.AsyncClient, served_name: str, request: Request, sampling: Sampling
) -> list[Completion]:
    payload: dict[str, Any] = {
        "model": served_name,
        "prompt": list(request.prompt_ids),
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "skip_special_tokens": False,
        "return_token_ids": True,
    }
    if sampling.constraint is not None:
        payload["structured_outputs"] = sampling.constraint
    if request.seed is not None:
        payload["seed"] = request.seed
    what = f"request {request.request_id} ({len(request.prompt_ids)} prompt tokens, {sampling.max_tokens} to sample)"
    answer = await post(client, "/v1/completions", payload, what, request.request_id)
    return _completions(answer, sampling.n, what)


async def classify(
    url: str,
    served_name: str,
    texts_or_ids: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_in_flight: int,
    alive: Callable[[], None],
    batch_size: int = 32,
    attempts: int = 5,
    timeout_s: float = 3600,
) -> list[float]:
    """Raw logits (no sigmoid) of a one-label sequence classifier served with `runner="pooling"`, in the order of the
    inputs.

    Token ids are scored as they are; texts are tokenised by the server with the tokenizer's own special tokens. Up to
    `batch_size` inputs travel in one HTTP request. Raises as `complete` does, and `CompletionError` if the model has
    more than one label.
    """
    scores = [float("nan")] * len(texts_or_ids)
    post = poster(alive, attempts)

    async def work(client: httpx.AsyncClient, start: int) -> None:
        inputs = [item if isinstance(item, str) else list(item) for item in texts_or_ids[start : start + batch_size]]
        what = f"classification of inputs {start}-{start + len(inputs) - 1} (longest: {max(map(len, inputs))})"
        payload = {"model": served_name, "input": inputs, "use_activation": False}
        data = (await post(client, "/classify", payload, what))["data"]
        if len(data) != len(inputs) or any(len(row["probs"]) != 1 for row in data):
            raise CompletionError(f"{what}: expected {len(inputs)} rows of one logit, got {len(data)}: {data[:1]}")
        for row in data:
            scores[start + row["index"]] = float(row["probs"][0])

    await run_all(url, range(0, len(texts_or_ids), batch_size), work, max_in_flight, timeout_s)
    return scores


async def run_all(
    url: str,
    items: Iterable[_Item],
    work: Callable[[httpx.AsyncClient, _Item], Awaitable[None]],
    max_in_flight: int,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Do `work` for every item with `max_in_flight` workers that share one lazy iterator; the first error ends all.

    Raises `EndingError` within a second where this process is told to end.
    """
    source = iter(items)

    async def worker(client: httpx.AsyncClient) -> None:
        for item in source:
            await work(client, item)

    async with http_client(url, max_in_flight, headers, timeout_s) as client:
        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(worker(client)) for _ in range(max_in_flight)]
                while not all(each.done() for each in workers):
                    refuse_when_ending()
                    await asyncio.wait(workers, timeout=1.0)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None


def http_client(
    url: str, max_in_flight: int, headers: Mapping[str, str] | None = None, timeout_s: float = 3600
) -> httpx.AsyncClient:
    """A client of one server for `max_in_flight` requests at once, each of at most `timeout_s` seconds."""
    limits = httpx.Limits(
        max_connections=max_in_flight, max_keepalive_connections=max_in_flight, keepalive_expiry=IDLE_S
    )
    timeout = httpx.Timeout(timeout_s, connect=30)
    return httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, headers=headers, trust_env=False)


def poster(alive: Callable[[], None], attempts: int) -> Post:
    """What posts a request, up to `attempts` times with back-off where that may heal; `alive` as in `complete`."""

    async def attempt(
        client: httpx.AsyncClient, path: str, payload: dict[str, Any], what: str, name: str | None
    ) -> dict[str, Any]:
        alive()
        try:
            response = await client.post(path, json=payload, headers={"X-Request-Id": name} if name else None)
        except httpx.TransportError as error:
            alive()
            slow = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
            raise (_TransientError if slow else UnreachableError)(f"{what}: {type(error).__name__}: {error}") from error
        if response.status_code == httpx.codes.OK:
            try:
                answer: dict[str, Any] = response.json()
            except ValueError as error:
                raise CompletionError(f"{what}: expected JSON, got {response.text[:500]!r}") from error
            return answer
        message = f"{what}: the server answered {response.status_code}: {_message(response)}"
        if response.is_server_error or response.status_code in _TRANSIENT_STATUS:
            alive()
            raise _TransientError(message)
        raise CompletionError(message)

    async def post(
        client: httpx.AsyncClient, path: str, payload: dict[str, Any], what: str, name: str | None = None
    ) -> dict[str, Any]:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            stop=stop_after_attempt(attempts),
            wait=wait_exponential_jitter(initial=0.25, max=20, jitter=0.25),
            before_sleep=before_sleep_log(_log, logging.WARNING),
            reraise=True,
        )
        return await retrying(attempt, client, path, payload, what, name)

    return post


def _message(response: httpx.Response) -> str:
    """The server's words; where they repeat the key that it was sent, without it."""
    try:
        told = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):  # not vLLM's error form: show what came
        told = response.text
    key = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    return (told.replace(key, "(the key)") if key else told)[:2000]


def _completions(answer: dict[str, Any], n: int, what: str) -> list[Completion]:
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    if len(choices) != n:
        raise CompletionError(f"{what}: asked for {n} samples, got {len(choices)}")
    return [
        Completion(
            text=choice["text"],
            finish_reason=choice["finish_reason"],
            token_ids=tuple(choice["token_ids"]),
            prompt_tokens=answer["usage"]["prompt_tokens"],
        )
        for choice in choices
    ]
