"""How fast sampling goes: what a step's progress tells beside its share."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from infra.serving.pool import Pool, Server

PROMPT = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
"""Prompt tokens that were looked up in a server's prefix cache, and those of them that were found."""


class Rate:
    """Requests and tokens since it was made, and the servers' prefix cache hits meanwhile."""

    def __init__(self, pool: Pool, requests: int) -> None:
        self._pool, self._requests = pool, requests
        self._began = time.monotonic()
        self._done = self._tokens = 0
        self._before: dict[Server, tuple[float, float]] = {}

    def add(self, tokens: int) -> None:
        """One request more is finished, with `tokens` sampled tokens."""
        self._done += 1
        self._tokens += tokens

    def told(self) -> str:
        """Requests of those owed, tokens a second, share of prompt tokens from the prefix cache (since the first call;
        of all that the servers do) and the time left, where they are known."""
        seconds = time.monotonic() - self._began
        parts = [f"{self._done:,} of {self._requests:,} requests", f"{self._tokens / seconds:,.0f} tok/s"]
        if (share := self._cached()) is not None:
            parts.append(f"{share:.0%} of prompt tokens cached")
        if self._done:
            parts.append(f"about {_duration(seconds / self._done * (self._requests - self._done))} left")
        return ", ".join(parts)

    def _cached(self) -> float | None:
        asked = found = 0.0
        for server in self._pool.living():
            try:
                now = prompt_tokens(server)
            except httpx.HTTPError:  # it is dying, or shows no metrics: others may
                continue
            before = self._before.setdefault(server, now)
            asked, found = asked + now[0] - before[0], found + now[1] - before[1]
        return found / asked if asked else None


def prompt_tokens(server: Server) -> tuple[float, float]:
    """Prompt tokens that a server has looked up in its prefix cache since it started, and those that were found.

    Raises:
        httpx.TransportError: it does not answer.
        httpx.HTTPStatusError: it answers without metrics.
    """
    answer = httpx.get(f"{server.url}/metrics", headers=dict(server.headers), timeout=5, trust_env=False)
    figures = dict.fromkeys(PROMPT, 0.0)
    for family in text_string_to_metric_families(answer.raise_for_status().text):
        for sample in family.samples:
            if sample.name in figures:
                figures[sample.name] += sample.value
    return figures[PROMPT[0]], figures[PROMPT[1]]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "1 min"
