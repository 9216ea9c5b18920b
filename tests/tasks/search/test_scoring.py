"""The reward model's requests of all problems together are limited."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes import FakeVllm, TinyServers

import infra.serving.classifier
from tasks.search.scoring import discriminative


def test_a_classifier_gets_no_more_requests_at_once_than_in_flight_however_many_problems(world, model, monkeypatch):
    open_now = most = 0

    async def classify(_url: str, _name: str, inputs: Any, *, max_in_flight: int, **_: Any) -> list[float]:
        nonlocal open_now, most
        open_now += max_in_flight
        most = max(most, open_now)
        await asyncio.sleep(0.001)
        open_now -= max_in_flight
        return [0.0] * len(inputs)

    monkeypatch.setattr(infra.serving.classifier, "classify", classify)
    queries = {f"q{number}": "which day is mon ?" for number in range(40)}
    scorer = discriminative(queries, world.store, model, TinyServers(world.work_dir, FakeVllm()), 3)
    kept: dict[str, dict[str, Any]] = {}

    async def scoring() -> None:
        async with scorer as score:
            asking = [score(name, {f"{name}/0/0": "tue"}, lambda *each: kept.update([each])) for name in queries]
            await asyncio.gather(*asking)

    asyncio.run(scoring())
    assert [each["reward"] for each in kept.values()] == [pytest.approx(0.5)] * 40
    assert most == 3
