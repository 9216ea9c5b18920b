"""A reward model's server dies: its replacement, if there is one, gets the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from infra.serving import classifier
from infra.serving.classifier import Classifier
from infra.serving.completions import CompletionError, UnreachableError
from infra.serving.vllm_server import ServerError


@dataclass
class Served:
    url: str
    served_name: str = "reward"
    headers: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def dead(monkeypatch):
    """The URLs of servers that are dead, with the error that a request to them ends with."""
    found: dict[str, Exception] = {}

    async def classify(url, _name, ids, **_):
        if url in found:
            raise found[url]
        return [float(len(each)) for each in ids]

    monkeypatch.setattr(classifier, "classify", classify)
    return found


@pytest.mark.parametrize("error", [ServerError("ended with status 137"), UnreachableError("refused")])
def test_the_replacement_of_a_dead_server_is_asked(dead, error):
    servers = iter([Served("http://a"), Served("http://b")])
    asked = Classifier(lambda: next(servers))
    assert asyncio.run(asked.logits([[1, 2]], max_in_flight=1)) == [2.0]
    dead["http://a"] = error
    assert asyncio.run(asked.logits([[1], [1, 2, 3]], max_in_flight=1)) == [1.0, 3.0]
    assert asyncio.run(asked.logits([[1]], max_in_flight=1)) == [1.0]  # and from now on


def test_without_a_replacement_the_step_fails_with_the_cause(dead):
    dead["http://a"] = ServerError("ended with status 137")
    with pytest.raises(ServerError, match="137"):
        asyncio.run(Classifier(lambda: Served("http://a")).logits([[1]], max_in_flight=1))


def test_other_errors_are_not_the_servers(dead):
    dead["http://a"] = CompletionError("two labels")
    servers = iter([Served("http://a"), Served("http://b")])
    with pytest.raises(CompletionError, match="two labels"):
        asyncio.run(Classifier(lambda: next(servers)).logits([[1]], max_in_flight=1))
