"""STILL-1, small: real Prefect, vLLM and DeepSpeed; a round, all of it cached, and a search with what it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small import run_preset
from still1_small import SMALL

from flows.__main__ import deployment
from flows.search import SearchFlowConfig
from flows.still1 import Still1Config

SEARCHES = [
    {"name": "mctsg", "search": {"strategy": "mctsg", "tokens": 120}},
    {"name": "sampling", "search": {"strategy": "sampling", "tokens": 120}, "answers": ["majority"]},
]


@pytest.mark.slow
@pytest.mark.faults  # four minutes, of steps that other tests have
@pytest.mark.timeout(1500)
def test_policy_and_reward_model_are_trained_and_search(tmp_path: Path) -> None:
    first = run_preset(tmp_path, "still1/nano", *SMALL)
    assert [stage["name"] for stage in first["stages"]] == ["instruct", "adapted", "round-1"]
    made = {step["name"]: step for step in first["steps"]}
    (round_1,) = first["rounds"]
    assert round_1["chosen"]["right"] + round_1["chosen"]["wrong"] == round_1["chosen"]["different"]
    assert 0 < made["chosen-1"]["rows"] <= 120
    assert 0 < made["pairs-1"]["rows"] == round_1["pairs"]["kept"]
    assert round_1["held_out"]["solutions"] == 24 * 8
    assert round_1["searched"]["problems"] == 60
    assert 0 < made["best-paths-1"]["rows"] <= 60
    assert "sft-search-1" in made
    page = (Path(first["path"]).parent / "report.html").read_text()
    assert "<title>STILL-1: " in page
    found = [(each["policy"], each["name"], each["answer"]) for each in first["searches"]]
    assert found[:3] == [
        ("instruct", "mctsg-4", "weighted"),
        ("instruct", "sampling-4", "majority"),
        ("instruct", "sampling-4", "best"),
    ]
    assert [each[0] for each in found[::3]] == ["instruct", "adapted", "round-1"]
    assert "Search trees" in (Path(first["path"]).parent / "trees.html").read_text()
    again = run_preset(tmp_path, "still1/nano", *SMALL)
    assert all(step["cached"] for step in again["steps"])
    assert (again["stages"], again["rounds"]) == (first["stages"], first["rounds"])

    models = {name: f"{name}/{made[name]['key']}" for name in ("dpo-1", "sft-reward-1")}
    given = (
        f"config.model={models['dpo-1']}",
        f"config.reward_model={models['sft-reward-1']}",
        "config.serving.policy_servers=1",
        "config.problems.draw.limit=12",
        f"config.searches={json.dumps(SEARCHES)}",
    )
    searched = run_preset(tmp_path, "search/nano", *given)
    for each in searched["searches"]:
        assert each["problems"] == 12
        assert each["tokens"] >= 100
        assert 0 <= each["accuracy_low"] <= each["accuracy"] <= each["accuracy_high"] <= 1
    again = run_preset(tmp_path, "search/nano", *given)
    assert all(step["cached"] for step in again["steps"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapt": {}}, "adapt: set `given` or `sampled`, and only one of them"),
        ({"improve": {"queries": {"draw": {"limit": 5}}}}, "set queries_per_round instead"),
        ({"improve": {"generate": {"format": "bolt"}}}, "solutions are plain text: leave it out"),
        ({"improve": {"held_out": {"sources": [{"path": "nano/data/test.jsonl"}]}}}, "is also in evaluate.problems"),
        (
            {"serving": {"share_devices": True}, "improve": {"search": {}}},
            "improve.search: serving.share_devices is true",
        ),
        ({"improve": {"search": {"verifier": "math500"}}}, "needed with `search.agree`, and only then"),
        ({"improve": {"search": {"learn": "pairs", "sft": {"epochs": 9}}}}, "there is no SFT: leave it out"),
        ({"improve": {"rounds": 0}}, "search is set, but without rounds there is no reward model"),
        ({"improve": {"judge": {"right": "no"}}}, "the two answers must differ"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], said: str) -> None:
    parameters = deployment("still1/nano")["parameters"]["config"]
    for name, value in changes.items():
        held = parameters[name]
        for inner, own in value.items():
            held = {**held, inner: {**held.get(inner, {}), **own} if isinstance(own, dict) else own}
        parameters[name] = held if value else {}
    with pytest.raises(ValidationError, match=said):
        Still1Config(**parameters)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"searches": [SEARCHES[0], SEARCHES[0]]}, "each name must be unique"),
        ({"reward_model": None, "judge": None}, "reward_model is null, but search sampling-4 needs one"),
        ({"reward_model": None, "searches": [SEARCHES[1]]}, "judge is set, but reward_model is null"),
        ({"searches": [{**SEARCHES[1], "search": {"strategy": "sampling", "patience": 3}}]}, "no reward is asked for"),
        ({"searches": [{**SEARCHES[1], "answers": ["best", "best"]}]}, "name each once"),
        ({"serving": {"share_devices": True}}, "a search asks policy and reward model in turn: set it to false"),
    ],
)
def test_searches_that_cannot_run_are_refused(changes: dict[str, Any], said: str) -> None:
    parameters = deployment("search/nano")["parameters"]["config"]
    for name, value in changes.items():
        parameters[name] = {**parameters[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ValidationError, match=said):
        SearchFlowConfig(**parameters)
