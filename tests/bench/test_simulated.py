"""The simulated engine answers as vLLM does, and counts what it decodes."""

from __future__ import annotations

import asyncio

import pytest

from bench.servers import SimulatedServer, decoded
from bench.simulated import Simulated
from infra.serving.completions import Completion, Request, Sampling
from infra.serving.pool import Pool, complete_on


def sampled(url: str, count: int, sampling: Sampling) -> dict[str, list[Completion]]:
    found: dict[str, list[Completion]] = {}
    asking = complete_on(
        Pool([SimulatedServer(url)]),
        [[f"r{number}" for number in range(count)]],
        lambda name: Request(name, [1, 2, 3], None),
        sampling,
        max_in_flight=4,
        on_result=lambda request, completions: found.update({request.request_id: completions}),
        on_quarantine=lambda request, reason: pytest.fail(f"{request.request_id}: {reason}"),
    )
    asyncio.run(asking)
    return found


def test_samples_are_answered_and_every_token_is_counted():
    with Simulated(2, slots=4, step_ms=1, tokens=40) as servers:
        first, other = servers.urls
        whole = sampled(first, 6, Sampling(n=3, max_tokens=30))
        steps = sampled(other, 6, Sampling(n=3, max_tokens=30, stop=("\n",)))
        samples = [each for found in (whole, steps) for own in found.values() for each in own]
        total = sum(each.tokens for each in samples)
        assert total <= decoded(first) == pytest.approx(decoded(other))
    assert len(samples) == 36
    assert all(each.tokens <= 30 for each in samples)
    assert {each.finish_reason for own in whole.values() for each in own} == {"stop", "length"}
    assert all(each.text.endswith("\n") for own in steps.values() for each in own if each.finish_reason == "stop")
    mean = {
        name: sum(each.tokens for own in found.values() for each in own) for name, found in (("w", whole), ("s", steps))
    }
    assert mean["s"] < mean["w"] / 2  # a step is a tenth of a solution, which is cut here


def test_the_same_request_has_the_same_lengths():
    lengths = []
    for _ in range(2):
        with Simulated(1, slots=8, step_ms=0.1, tokens=40) as servers:
            found = sampled(servers.urls[0], 4, Sampling(n=2, max_tokens=200))
            lengths.append({name: [each.tokens for each in own] for name, own in found.items()})
    assert lengths[0] == lengths[1]
