"""Sampling and scoring as the stages use them: what is refused before a server starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

import flows.stages.sampling
from flows.bolt import BoltConfig
from flows.bootstrap import BootstrapConfig
from flows.stages.mining import MineStage
from flows.stages.sampling import rewardable, sample
from infra.errors import BadInput
from infra.store.manifest import Ref
from tasks.responses.generate import GenerateConfig

QUERIES = Ref(kind="table", step="queries", key="k", uri="", digest="d", rows=2)
MODEL = Ref(kind="model", step="imported", key="m", uri="", digest="m", rows=1)
SOURCES = [{"path": "queries.jsonl"}]
SERVING = {"policy": {"max_model_len": 9000}, "reward": {"max_model_len": 9000}}


def run(*, dry: bool = False, remote: bool = False) -> Any:
    return SimpleNamespace(
        dry=dry,
        servers=SimpleNamespace(is_remote=lambda _model: remote),
        estimates=SimpleNamespace(tokens_per_response=1),
        do_shards=lambda *_, **__: ["sampled"],
    )


def sampled(where: Any, **changes: Any) -> Any:
    return sample(where, "responses", GenerateConfig(**changes), QUERIES, MODEL, shards=1)


def test_request_seeds_on_cpu_are_refused_before_a_server_starts(monkeypatch):
    monkeypatch.setattr(flows.stages.sampling, "runs_on_cpu", lambda: True)
    with pytest.raises(BadInput, match=r"responses: request_seeds is true.* kills vLLM's CPU build: set"):
        sampled(run())
    assert sampled(run(), request_seeds=False) == ["sampled"]
    assert sampled(run(dry=True)) == ["sampled"]  # it may plan for a machine with GPUs
    assert sampled(run(remote=True)) == ["sampled"]
    monkeypatch.setattr(flows.stages.sampling, "runs_on_cpu", lambda: False)
    assert sampled(run()) == ["sampled"]


def test_without_a_reward_model_a_right_answer_must_be_worth_something():
    given = {"model": "m", "reward_model": None, "serving": SERVING, "queries": {"sources": SOURCES}}
    with pytest.raises(ValidationError, match=r"reward_model is null.* set score\.verified_weight above 0"):
        BootstrapConfig(**given)
    assert BootstrapConfig(**given, score={"verified_weight": 1.0}).reward_model is None
    whole = {name: given[name] for name in ("model", "reward_model", "serving")}
    stage = {"queries": {"sources": SOURCES}, "score": {"verified_weight": 1.0}}
    evaluate = {"problems": {"sources": SOURCES}}
    assert BoltConfig(**whole, bootstrap=stage, online=stage, evaluate=evaluate).reward_model is None
    with pytest.raises(ValidationError, match=r"set online\.score\.verified_weight above 0"):
        BoltConfig(**whole, bootstrap=stage, online={"queries": {"sources": SOURCES}}, evaluate=evaluate)


def test_without_a_reward_model_queries_without_a_reference_are_not_drawn():
    queries = MineStage(sources=SOURCES, draw={"limit": 5})
    assert rewardable(queries, "a/model") == queries
    assert rewardable(queries, None).draw == queries.draw.model_copy(update={"references_only": True})
