"""Rewards from a sequence classifier's server, and from its replacement if it dies and there is one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from infra.serving.completions import UnreachableError, classify
from infra.serving.pool import Server
from infra.serving.vllm_server import ServerError

log = logging.getLogger(__name__)


class Classifier:
    """A served sequence classifier with one label."""

    def __init__(self, serve: Callable[[], Server]) -> None:
        """`serve` gives the server. If that dies, it is called again: on a cluster, a dead server is replaced."""
        self._serve, self._server = serve, serve()

    async def logits(self, ids: Sequence[Sequence[int]], *, max_in_flight: int) -> list[float]:
        """The raw logit of each sequence of token ids.

        Raises:
            infra.serving.vllm_server.ServerError: the server died and was not replaced.
            infra.serving.completions.CompletionError: as `infra.serving.completions.classify`.
        """
        while True:
            server = self._server
            try:
                return await classify(
                    server.url,
                    server.served_name,
                    ids,
                    max_in_flight=max_in_flight,
                    alive=server.check,
                    headers=server.headers,
                )
            except (ServerError, UnreachableError) as error:
                other = await asyncio.to_thread(self._serve)
                if other.url == server.url:
                    raise
                log.warning("%s is lost; its requests go to %s: %s", server.url, other.url, error)
                self._server = other
