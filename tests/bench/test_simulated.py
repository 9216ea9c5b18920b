"""The simulated engine answers as vLLM does, and counts what it decodes."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from bench.servers import SimulatedServer, decoded
from bench.simulated import NAME, Simulated
from cot_formats.responses import parse_response
from infra.serving.completions import Completion, Request, Sampling, classify
from infra.serving.pool import Pool, complete_on
from infra.serving.remote_server import RemoteServer
from tasks.responses.filter import FilterConfig, reason_to_drop


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


def test_without_steps_samples_take_no_time_and_are_well_formed_unless_they_are_cut():
    with Simulated(1, slots=64, step_ms=0, tokens=200, format="bolt") as servers:
        found = sampled(servers.urls[0], 40, Sampling(n=8, max_tokens=300))
    samples = [each for own in found.values() for each in own]
    assert len({each.text for each in samples}) == len(samples)
    reasons = Counter()
    for each in samples:
        parsed = parse_response(each.text, "bolt", ended=each.finish_reason == "stop")
        words = len(f"{parsed['thoughts']} {parsed['solution']}".split())
        assert each.finish_reason == "length" or (parsed["violations"], words) == ([], each.tokens)
        row = {**parsed, "finish_reason": each.finish_reason, "thought_tokens": 0.75 * words}
        reasons[reason_to_drop(row, "what now ?", [], FilterConfig(), "bolt")] += 1
    assert reasons["truncated"] == sum(each.finish_reason == "length" for each in samples) > 0
    assert reasons.keys() <= {None, "truncated", "too short"}
    assert reasons[None] > len(samples) / 2


def test_rewards_depend_on_the_tokens_alone():
    with Simulated(1, slots=1, step_ms=0, tokens=1) as servers:
        url = servers.urls[0]
        assert RemoteServer(url, NAME).reachable(20_480)
        asked = classify(url, NAME, [[1, 2], [3], [1, 2]], max_in_flight=1, alive=lambda: None, batch_size=2)
        first, second, third = asyncio.run(asked)
    assert 0 < first == third != second < 1
