"""How fast sampling goes: what a step's progress shows beside the requests done."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from infra.serving.pool import Pool, Server

PROMPT = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
"""Prompt tokens that were looked up in a server's prefix cache, and those of them that were found."""


class Rate:
    """Tokens sampled since it was made, and the servers' prefix cache hits meanwhile."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._began = time.monotonic()
        self._tokens = 0
        self._before: dict[Server, tuple[float, float]] = {}

    def add(self, tokens: int) -> None:
        """One more request is finished, with `tokens` sampled tokens."""
        self._tokens += tokens

    def text(self) -> str:
        """Tokens a second, and the share of prompt tokens that came from the prefix cache since the first call.

        The share counts all that the servers do; it is left out where they show no metrics.
        """
        seconds = time.monotonic() - self._began
        parts = [f"{self._tokens / seconds:,.0f} tok/s"]
        if (share := self._cached()) is not None:
            parts.append(f"{share:.0%} of prompt tokens cached")
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
