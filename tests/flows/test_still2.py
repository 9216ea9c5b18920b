"""STILL-2, small: real Prefect, vLLM and DeepSpeed; imitation with continued texts, a round by SFT, one by DPO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small import run_preset
from still2_small import SMALL, lessons

from flows.__main__ import deployment
from flows.still2 import Still2Config


def run(place: Path, *more: str) -> dict[str, Any]:
    return run_preset(place, "still2/nano", *SMALL, *more)


@pytest.mark.slow
@pytest.mark.faults  # five minutes, of steps that other tests have
@pytest.mark.timeout(1200)
def test_imitate_explore_and_improve_then_all_of_it_is_cached(tmp_path: Path) -> None:
    sources = f"config.imitate.sources={json.dumps(lessons(tmp_path))}"
    first = run(tmp_path, sources)
    assert [stage["name"] for stage in first["stages"]] == ["instruct", "imitated", "round-1"]
    made = {step["name"]: step["rows"] for step in first["steps"]}
    assert made["distilled"] == 240
    assert 0 < made["continued"] <= 40
    assert made["imitated"] > made["imitated-whole"]
    assert made["longcot-1"] == made["imitated"] + made["picked-1"]
    (round_1,) = first["rounds"]
    assert round_1["problems"] == 16
    assert 0 < round_1["solved"] == made["picked-1"] == round_1["learned"]
    assert round_1["rollouts"] == 2 * 16 + 2 * made["left-round-1-1"]  # no rollout is paid for that nothing needs
    page = (Path(first["path"]).parent / "report.html").read_text()
    assert "<title>STILL-2: " in page
    assert "rollouts, round 1" in page
    again = run(tmp_path, sources)
    assert all(step["cached"] for step in again["steps"])
    assert (again["stages"], again["rounds"]) == (first["stages"], first["rounds"])

    preferred = run(tmp_path, sources, "config.improve.method=dpo")
    fresh = {step["name"] for step in preferred["steps"] if not step["cached"]}
    assert {"perplexities-1", "pairs-1", "dpo-1"} <= fresh
    assert not {"sft-imitated", "rollouts-round-1-1", "explored-1"} & fresh
    gains = [(gain["from"], gain["to"]) for gain in preferred["gains"]]
    assert gains == [("instruct", "imitated"), ("imitated", "round-1"), ("instruct", "round-1")]
    assert preferred["imitation"]["distilled-filtered"]["kept"] > 200


def test_the_presets_defaults_are_the_papers() -> None:
    config = Still2Config(**deployment("still2/nano")["parameters"]["config"])
    assert (config.improve.method, config.explore.pick.by) == ("sft", "length")
    fields = Still2Config.model_fields
    assert fields["sft"].default.learning_rate == 1e-5
    assert fields["sft"].default.batch == 96
    parameters = deployment("still2/nano")["parameters"]["config"]
    partly = {"sft": {"ranks": 1}, "improve": {"dpo": {"beta": 0.2}}}
    partly |= {"imitate": {**parameters["imitate"], "write_solutions": {"max_tokens": 9}}}
    partly |= {"explore": {**parameters["explore"], "verifier": "everyday", "generate": {"max_tokens": 9}}}
    config = Still2Config(**{**parameters, **partly})  # what is set in part keeps the other defaults of STILL-2
    assert (config.sft.learning_rate, config.sft.batch) == (1e-5, 96)
    assert (config.imitate.write_solutions.temperature, config.imitate.write_solutions.samples) == (0, 1)
    assert (config.explore.verifier, config.explore.generate.max_truncated_share) == ("everyday", 1)
    assert config.improve.dpo.end_token is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "qwq", "improve": {"method": "dpo"}}, "format is qwq, which does not say where thoughts end"),
        ({"improve": {"method": "dpo", "dpo": {"end_token": True}}}, "dpo.end_token is true"),
        ({"improve": {"method": "dpo", "start": "base"}}, "start is base, but DPO begins with the model after"),
        ({"improve": {"method": "dpo"}, "explore": {"pick": {"limit": 10}}}, "explore.pick is set, but improve.method"),
        ({"sft": {"overlong": "error", "max_length": 320}}, "leaves no room for the query, and sft.overlong is error"),
        (
            {"evaluate": {"generate": {"format": "r1", "max_tokens": 320}}},
            "generate.format is r1, but each model answers in its own",
        ),
        ({"imitate": {"sources": [{"path": "a.jsonl", "continued": True}]}}, "sources: all are `continued`"),
        ({"explore": {"verifier": "no.such:function"}}, "there is no module no.such"),
        ({"explore": {"rollouts": 2}}, "generate.samples is 4, but a problem gets at most 2 rollouts"),
        (
            {"explore": {"generate": {"format": "r1", "max_tokens": 320}}},
            "explore.generate.format is r1, but the policy writes `format`, bolt",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], said: str) -> None:
    parameters = deployment("still2/nano")["parameters"]["config"]
    for name, value in changes.items():
        parameters[name] = {**parameters[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ValidationError, match=said):
        Still2Config(**parameters)
