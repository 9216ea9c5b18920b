"""The speed of sampling, which a step's progress shows next to the number of finished requests."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from infra.proxies import may_use_proxy
from infra.serving.pool import Pool, Server

PROMPT = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
"""Counters of a server: prompt tokens looked up in its prefix cache, and those of them that were found."""


class Rate:
    """Measures the sampled tokens per second and the servers' prefix cache hits, from its creation on."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._began = time.monotonic()
        self._tokens = 0
        self._before: dict[Server, tuple[float, float]] = {}

    def add(self, tokens: int) -> None:
        """Count one more finished request, with `tokens` sampled tokens."""
        self._tokens += tokens

    def text(self) -> str:
        """Tokens per second, and the share of prompt tokens found in the prefix cache since the first call.

        The share covers all requests to these servers, those of other shards too. It is omitted if they have no
        metrics.
        """
        seconds = time.monotonic() - self._began
        parts = [f"{self._tokens / seconds:,.0f} tok/s"]
        if (share := self._cached()) is not None:
            parts.append(f"{share:.0%} of prompt tokens cached")
        return ", ".join(parts)

    def _cached(self) -> float | None:
        queried = found = 0.0
        for server in self._pool.living():
            try:
                now = prompt_tokens(server)
            except httpx.HTTPError:  # it is dying or has no metrics; the others may have some
                continue
            before = self._before.setdefault(server, now)
            queried, found = queried + now[0] - before[0], found + now[1] - before[1]
        return found / queried if queried else None


def prompt_tokens(server: Server) -> tuple[float, float]:
    """Prompt tokens that a server has looked up in its prefix cache since it started, and how many it found.

    Raises:
        httpx.TransportError: the server does not answer.
        httpx.HTTPStatusError: the server has no metrics.
    """
    url = f"{server.url}/metrics"
    answer = httpx.get(url, headers=dict(server.headers), timeout=5, trust_env=may_use_proxy(url))
    figures = dict.fromkeys(PROMPT, 0.0)
    for family in text_string_to_metric_families(answer.raise_for_status().text):
        for sample in family.samples:
            if sample.name in figures:
                figures[sample.name] += sample.value
    return figures[PROMPT[0]], figures[PROMPT[1]]
