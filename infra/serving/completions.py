"""Clients of a running vLLM server: sampled completions and reward-model scores.

The number of requests in flight is bounded and transient failures are retried. A refusal names the request. A dead
server is reported by the error that `alive` raises (with the server's last log lines), never as a timeout. Other
machines are reached through the proxies of the environment, this one never is.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, Field
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type

from infra.processes.watchdog import refuse_when_ending
from infra.proxies import may_use_proxy
from infra.serving.failures import answer_of, complaint_of, error_text, status_of_failure, without_key
from infra.serving.patience import Patience, retry_after_s

_log = logging.getLogger(__name__)
_TRANSIENT_STATUS = {408, 425, 429}
_DENIED_STATUS = {401, 402, 404, 405}
IDLE_S = 30.0
"""Seconds for which an idle connection is kept. More than the pauses of a busy machine, after which a connection that a
request has just taken would be closed as idle; less than the minute after which load balancers drop one silently."""
_Item = TypeVar("_Item")


class CompletionError(RuntimeError):
    """A request was refused, kept failing, or got a response of an unexpected form; the text names the request."""


class RefusedError(CompletionError):
    """The server refuses this one request (HTTP 4xx), or its answer is none; another request may be accepted.

    `reason` is what the server said. `complaint` is all that its answer says of a request that another form may
    correct (HTTP 400 or 422), without the request itself. Neither holds the API key.
    """

    def __init__(self, text: str, *, reason: str = "", complaint: str = "") -> None:
        super().__init__(text)
        self.reason, self.complaint = reason or text, complaint


class DeniedError(CompletionError):
    """The server refuses whatever is sent: the key, the address, the model's name or the account is wrong."""


class _TransientError(CompletionError):
    """Worth another attempt. `put_off_s`: the server asked for as many seconds of patience (`Retry-After`)."""

    def __init__(self, text: str, *, put_off_s: float | None = None) -> None:
        super().__init__(text)
        self.put_off_s = put_off_s


class UnreachableError(_TransientError):
    """The connection to the server failed or broke."""


@dataclass(frozen=True)
class Request:
    """One prompt to sample from."""

    request_id: str
    prompt_ids: tuple[int, ...] | list[int]
    seed: int | None
    """Seed of this request's samples; must be None on CPU, where a seeded request kills the engine."""


class Sampling(BaseModel, frozen=True, extra="forbid"):
    """How to sample; the defaults are the paper's online sampling (stage 3)."""

    n: int = Field(8, gt=0, description="Samples per prompt")
    temperature: float = Field(1.0, ge=0, description="Softmax temperature; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling mass")
    max_tokens: int = Field(gt=0, description="Maximum tokens per sample, including the end token")
    stop: tuple[str, ...] = Field(
        (), description="Strings that end a sample and are kept in its text, in addition to the model's end tokens"
    )
    constraint: dict[str, Any] | None = Field(
        None,
        description="Constraint that the server enforces on the text (vLLM's `structured_outputs`): {regex: ...} or "
        "{choice: [...]}",
    )
    prompt_log_probs: bool = Field(False, description="Whether the prompt's log-probabilities are wanted too")
    first_log_probs: tuple[int, ...] = Field(
        (), description="Token ids whose log-probabilities as the first sampled token are wanted too"
    )


@dataclass(frozen=True)
class Completion:
    """One sample."""

    text: str
    """Decoded text without the end token; other special tokens are kept, so that format rules can see them."""
    finish_reason: str
    """`stop` (an end token) or `length` (cut at `max_tokens` or at the model's maximum length)."""
    token_ids: tuple[int, ...]
    """Sampled ids, including the end token."""
    prompt_log_probs: tuple[float, ...] = ()  # of each token of the prompt but the first, in nats, if asked for
    first_log_probs: tuple[float, ...] = ()  # of the tokens that were asked for, as the first sampled one, in nats

    @property
    def tokens(self) -> int:
        """Number of sampled tokens, including the end token."""
        return len(self.token_ids)


@functools.cache
def _tls(trust_env: bool, _files: tuple[str | None, ...]) -> ssl.SSLContext:
    """The certificates to check against, read once: that takes 20 ms, and a search opens many clients."""
    return httpx.create_ssl_context(trust_env=trust_env)


class Client:
    """Posts JSON requests to one server and retries what is transient. Use it as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        max_in_flight: int,
        alive: Callable[[], None],
        headers: Mapping[str, str] | None = None,
        attempts: int = 5,
        timeout_s: float = 3600,
    ) -> None:
        """
        Args:
            url: the server's base address, without `/v1`.
            max_in_flight: maximum number of open connections.
            alive: called before every attempt and after every failure; raises if the server died
                (`VllmServer.check`).
            headers: sent with every request, such as an API key.
            attempts: attempts per request, with exponential back-off between them. An attempt that the server puts off
                (`Retry-After`) does not count (see `infra.serving.patience`).
            timeout_s: limit for one attempt, in seconds.
        """
        limits = httpx.Limits(
            max_connections=max_in_flight, max_keepalive_connections=max_in_flight, keepalive_expiry=IDLE_S
        )
        timeout = httpx.Timeout(timeout_s, connect=30)
        trust, kept = may_use_proxy(url), tuple(map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR")))
        self._http = httpx.AsyncClient(
            base_url=url, timeout=timeout, limits=limits, headers=headers, trust_env=trust, verify=_tls(trust, kept)
        )
        self._alive, self._attempts = alive, attempts
        self.denied = set(_DENIED_STATUS)
        """Statuses which say that every request would be refused."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def post(self, path: str, payload: dict[str, Any], what: str, name: str | None = None) -> dict[str, Any]:
        """Post `payload` to `path` and return the response's JSON.

        Args:
            what: names the request in errors.
            name: names the request in the server's log.

        Raises:
            RefusedError: the request was refused (HTTP 4xx, at once).
            DeniedError: every request would be refused (HTTP 401, 402, 404, 405, 3xx; see `denied`).
            UnreachableError: the last attempt did not reach the server.
            CompletionError: it failed in every attempt.
        """
        patience = Patience(self._attempts)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TransientError),
            stop=patience.is_over,
            wait=patience.wait_s,
            before_sleep=before_sleep_log(_log, logging.WARNING),
            reraise=True,
        )
        return await retrying(self._post_once, path, payload, what, name)

    async def _post_once(self, path: str, payload: dict[str, Any], what: str, name: str | None) -> dict[str, Any]:
        self._alive()
        try:
            response = await self._http.post(path, json=payload, headers={"X-Request-Id": name} if name else None)
        except (httpx.TransportError, httpx.DecodingError) as error:
            self._alive()
            lives = isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout | httpx.DecodingError)
            kind = _TransientError if lives else UnreachableError
            raise kind(f"{what}: {type(error).__name__}: {error}") from error
        sent, status, answer = response.request.headers, response.status_code, answer_of(response)
        said = error_text(response, answer)
        if response.is_success:
            if not isinstance(answer, dict):
                raise RefusedError(f"{what}: expected a JSON object, got {said[:500]!r}")
            if (failed := status_of_failure(answer)) is None:
                return answer
            status = failed
        if 300 <= status < 400:
            place = re.sub(r"(?<=//)[^/]*@|[?#].*", "", response.headers.get("Location", "another address"))
            raise DeniedError(f"{what}: the server redirects to {without_key(place, sent)[:500]}: give that address")
        message = f"{what}: the server answered {status}: {said}"
        if status >= 500 or status in _TRANSIENT_STATUS:
            self._alive()
            raise _TransientError(message, put_off_s=retry_after_s(response))
        if status in self.denied:
            raise DeniedError(message)
        complaint = without_key(complaint_of(answer), sent)[:20_000] if status in (400, 422) else ""
        raise RefusedError(message, reason=f"{status}: {said}", complaint=complaint)


async def complete(
    url: str,
    served_name: str,
    requests: Iterable[Request],
    sampling: Sampling,
    *,
    max_in_flight: int,
    on_result: Callable[[Request, list[Completion]], None],
    alive: Callable[[], None],
    on_refused: Callable[[Request, str], None] | None = None,
    headers: Mapping[str, str] | None = None,
    attempts: int = 5,
) -> None:
    """Sample `sampling.n` completions for every request, and pass each finished request to `on_result`, one at a time.

    `requests` is consumed lazily, at most `max_in_flight` ahead. For `alive`, `headers` and `attempts` see `Client`.
    `on_refused` gets each request that the server refuses, such as one that is too long, and the reason; if it is
    omitted, a refusal is raised.

    Raises:
        CompletionError: as `Client.post`. Whatever `alive`, `on_result` and `on_refused` raise ends the run as well.
    """
    async with Client(url, max_in_flight=max_in_flight, alive=alive, headers=headers, attempts=attempts) as client:

        async def work(request: Request) -> None:
            try:
                completions = await sample(client, served_name, request, sampling)
            except RefusedError as error:
                if on_refused is None:
                    raise
                on_refused(request, error.reason)
            else:
                on_result(request, completions)

        await run_all(requests, work, max_in_flight)


async def sample(client: Client, served_name: str, request: Request, sampling: Sampling) -> list[Completion]:
    """The `sampling.n` completions of one request. Raises as `Client.post`."""
    (found,) = await sample_together(client, served_name, [request], sampling)
    return found


async def sample_together(
    client: Client, served_name: str, requests: Sequence[Request], sampling: Sampling
) -> list[list[Completion]]:
    """The `sampling.n` completions of each request, all asked for in one HTTP request.

    Several have no seeds, since a seed is that of the whole HTTP request. Raises as `Client.post`.
    """
    first, count = requests[0], len(requests)
    assert count == 1 or all(each.seed is None for each in requests)
    payload: dict[str, Any] = {
        "model": served_name,
        "prompt": list(first.prompt_ids) if count == 1 else [list(each.prompt_ids) for each in requests],
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
        "skip_special_tokens": False,
        "return_token_ids": True,
    }
    if sampling.constraint is not None:
        payload["structured_outputs"] = sampling.constraint
    if sampling.prompt_log_probs:
        payload["prompt_logprobs"] = 0  # of the prompt's own tokens, and no others
    if sampling.first_log_probs:
        payload |= {"logprobs": len(sampling.first_log_probs), "logprob_token_ids": list(sampling.first_log_probs)}
        payload["return_tokens_as_token_ids"] = True
    if first.seed is not None:
        payload["seed"] = first.seed
    what = f"request {first.request_id} ({len(first.prompt_ids)} prompt tokens, {sampling.max_tokens} to sample)"
    what += f" and {count - 1} more" if count > 1 else ""
    answer = await client.post("/v1/completions", payload, what, first.request_id)
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))  # those of the first prompt come first
    if len(choices) != sampling.n * count:
        raise CompletionError(f"{what}: asked for {sampling.n * count} samples, got {len(choices)}")
    shares = (choices[place * sampling.n : (place + 1) * sampling.n] for place in range(count))
    return [_completions(own, request, sampling) for own, request in zip(shares, requests, strict=True)]


def _completions(choices: Sequence[dict[str, Any]], request: Request, sampling: Sampling) -> list[Completion]:
    """The completions of one request. Raises `CompletionError` if log-probabilities that were asked for are missing."""
    return [
        Completion(
            text=choice["text"] + _stop_string(choice),
            finish_reason=choice["finish_reason"],
            token_ids=tuple(choice["token_ids"]),
            prompt_log_probs=_own_log_probs(choice, request) if sampling.prompt_log_probs else (),
            first_log_probs=_first_log_probs(choice, request, sampling.first_log_probs),
        )
        for choice in choices
    ]


def _own_log_probs(choice: dict[str, Any], request: Request) -> tuple[float, ...]:
    """The log-probability of each token of the prompt but the first."""
    found = choice.get("prompt_logprobs") or []
    if len(found) != len(request.prompt_ids):
        raise CompletionError(f"request {request.request_id}: the server gives no log-probabilities of the prompt")
    return tuple(each[str(token)]["logprob"] for each, token in zip(found[1:], request.prompt_ids[1:], strict=True))


def _first_log_probs(choice: dict[str, Any], request: Request, wanted: Sequence[int]) -> tuple[float, ...]:
    """The log-probabilities of the wanted tokens as the first one of a sample."""
    if not wanted:
        return ()
    found = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0] or {}
    if missing := [token for token in wanted if f"token_id:{token}" not in found]:
        raise CompletionError(
            f"request {request.request_id}: the server gives no log-probability of token {missing[0]}"
        )
    return tuple(float(found[f"token_id:{token}"]) for token in wanted)


def _stop_string(choice: dict[str, Any]) -> str:
    """The stop string that ended a sample, which vLLM cuts off the text; "" if an end token did.

    vLLM's `include_stop_str_in_output` would keep the text of end tokens as well.
    """
    reason = choice.get("stop_reason")
    return reason if isinstance(reason, str) else ""


async def classify(
    url: str,
    served_name: str,
    texts_or_ids: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_in_flight: int,
    alive: Callable[[], None],
    headers: Mapping[str, str] | None = None,
    batch_size: int = 32,
) -> list[float]:
    """Raw logits (no sigmoid) of a one-label sequence classifier served with `runner="pooling"`, one per input.

    Token ids are scored as they are; texts are tokenised by the server, which adds the tokenizer's own special tokens.
    One HTTP request carries up to `batch_size` inputs.

    Raises:
        CompletionError: as `Client.post`, or the model has more than one label.
    """
    scores = [float("nan")] * len(texts_or_ids)
    async with Client(url, max_in_flight=max_in_flight, alive=alive, headers=headers) as client:

        async def work(start: int) -> None:
            batch = [item if isinstance(item, str) else list(item) for item in texts_or_ids[start : start + batch_size]]
            what = f"classification of inputs {start}-{start + len(batch) - 1} (longest: {max(map(len, batch))})"
            payload = {"model": served_name, "input": batch, "use_activation": False}
            data = (await client.post("/classify", payload, what))["data"]
            if len(data) != len(batch) or any(len(row["probs"]) != 1 for row in data):
                raise CompletionError(f"{what}: expected {len(batch)} rows of one logit, got {len(data)}: {data[:1]}")
            for row in data:
                scores[start + row["index"]] = float(row["probs"][0])

        starts = range(0, len(texts_or_ids), batch_size)
        await run_all(starts, work, min(max_in_flight, len(starts)))
    return scores


async def run_all(items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]], max_in_flight: int) -> None:
    """Do `work` for every item with `max_in_flight` workers that share one lazy iterator; the first error ends all.

    Raises `EndingError` within a second once this process has been told to end.
    """
    source = iter(items)

    async def worker() -> None:
        for item in source:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(worker()) for _ in range(max_in_flight)]
            while not all(each.done() for each in workers):
                refuse_when_ending()
                await asyncio.wait(workers, timeout=1.0)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
