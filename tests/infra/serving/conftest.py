"""A fake endpoint of chat completions over real HTTP, and retries without waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chats import answer
from endpoint import Endpoint
from tenacity import wait_none

import infra.serving.patience


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(lambda _: (200, answer()))
    yield made
    made.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.serving.patience, "wait_exponential_jitter", lambda **_: wait_none())
