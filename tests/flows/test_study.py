"""A study: its cells, what is wrong with them, and its results; the method itself is not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small import small_world

import flows.study
from flows.__main__ import deployment
from flows.bolt import BoltConfig
from flows.still1 import Still1Config
from flows.still2 import Still2Config
from flows.study import StudyConfig, cells, reason, study
from infra.errors import GuardError
from infra.processes.causes import last_words

RLOO = {"online.method": "rloo", "online.rl": {"learning_rate": 1e-4}}


@pytest.fixture
def base(tmp_path: Path) -> BoltConfig:
    return BoltConfig(**small_world(tmp_path / "files"))


def test_cells_are_seeded_and_differ_in_their_settings(base: BoltConfig) -> None:
    arms = [{"name": "dpo"}, {"name": "rloo", "settings": RLOO, "seeds": [2, 3]}]
    found = dict(cells(StudyConfig(base=base, arms=arms, seeds=(1, 2))))
    assert list(found) == ["dpo/1", "dpo/2", "rloo/2", "rloo/3"]
    for cell, config in found.items():
        seeds = config.serving.policy.seed, config.sft.seed, config.online.recipe.seed, config.online.generate.seed
        assert {*seeds, config.bootstrap.generate.seed} == {int(cell[-1])}
    assert (found["rloo/2"].online.method, found["rloo/2"].online.rl.learning_rate) == ("rloo", 1e-4)
    assert found["dpo/2"].online.rl.seed == 0
    assert RLOO == {"online.method": "rloo", "online.rl": {"learning_rate": 1e-4}}  # as they were given
    assert found["dpo/1"].sft == found["dpo/2"].sft.model_copy(update={"seed": 1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": [{"name": "a", "settings": {"online.nothing": "rloo"}}]}, "a: there is no setting online.nothing"),
        ({"arms": [{"name": "a", "settings": {"online.model.x": 1}}]}, "a: there is no setting online.model.x"),
        (
            {"arms": [{"name": "a", "settings": {"online.method": "ppo"}}]},
            "arms: a: online.method: Input should be 'dpo', 'rloo'",
        ),
        ({"arms": [{"name": "a", "settings": {"online.rl": {"beta": 1}}}]}, "rl.beta is set, but method is dpo"),
        ({"arms": [{"name": "a", "settings": {"sft.seed": 3}}]}, "a: sft.seed is set, but the study seeds it"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "each name must be unique"),
        ({"arms": [{"name": "a"}], "only": ["b/1"]}, "only: no cell 'b/1'; there are a/0, a/1, a/2"),
    ],
)
def test_wrong_arms_are_refused_by_name(base: BoltConfig, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StudyConfig(base=base, **changes)


def test_the_preset_has_all_methods() -> None:
    config = StudyConfig(**deployment("study/nano")["parameters"]["config"])
    assert {cell.online.method for _, cell in cells(config)} == {"dpo", "rloo", "reinforce", "grpo"}


@pytest.mark.parametrize("base", ["bolt", None, ["imitate"], {}])
def test_a_base_that_is_no_set_of_parameters_is_refused(base: Any) -> None:
    with pytest.raises(ValidationError, match=r"base"):
        StudyConfig(base=base, arms=[{"name": "a"}])


def test_arms_of_still2_leave_unset_what_depends_on_others() -> None:
    config = StudyConfig(**deployment("study/still2-nano")["parameters"]["config"])
    found = {cell: parameters for cell, parameters in cells(config) if isinstance(parameters, Still2Config)}
    assert len(found) == 12
    assert (found["dpo/2"].improve.method, found["dpo/2"].improve.dpo.seed, found["dpo/2"].sft.seed) == ("dpo", 2, 2)
    assert found["sft-random/1"].explore.pick.model_dump() == {
        **found["sft/1"].explore.pick.model_dump(),
        "by": "random",
    }
    assert (found["all/3"].imitate.choose.share, found["all/3"].improve.rounds) == (1.0, 0)


def test_arms_of_still1_are_seeded_where_they_sample_and_train() -> None:
    config = StudyConfig(**deployment("study/still1-nano")["parameters"]["config"])
    found = {cell: parameters for cell, parameters in cells(config) if isinstance(parameters, Still1Config)}
    assert len(found) == 9
    one = found["with-search/2"]
    assert one.search is None
    assert one.improve.search is not None
    seeds = (one.sft.seed, one.improve.dpo.seed, one.improve.reward.seed, one.improve.choose.seed)
    more = (one.improve.generate.seed, one.improve.search.sampling.seed, one.improve.search.sft.seed)
    assert (*seeds, *more) == (2,) * 7
    assert found["mutual/3"].search is not None
    assert found["mutual/3"].search.sampling.seed == 3
    assert found["unseen-topic/1"].improve.queries.draw.caps == {"ordering": 0}


def test_the_reason_of_a_failed_training_is_its_cause_without_the_log() -> None:
    log = last_words(Path("/x/train.log"), "ValueError: no", "tail")
    said = f"infra.training.rl on 1 ranks ended with status 1; {log}"
    assert reason(said) == "ValueError: no"
    assert reason("a  bad\nsetting") == "a bad setting"


@pytest.mark.usefixtures("prefect_server")
def test_a_cell_that_fails_is_a_result_and_the_others_are_compared(
    base: BoltConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    asked = []

    def bolt(config: BoltConfig) -> dict[str, Any]:
        asked.append((config.online.method, config.sft.seed))
        figures = {"thought_tokens": 4.0, "solution_tokens": 2.0, "malformed": 0.0, "by_steps": []}
        stages = [{"name": name, "accuracy": 0.5, "greedy_accuracy": 0.5, **figures} for name in ("sft", "online-1")]
        if config.online.method == "rloo" and config.sft.seed < 3:
            error = GuardError("KL to pi_0 is 3; limit 0.5")
            error.summary = {"stages": stages} if config.sft.seed == 2 else None
            raise error
        return {"stages": stages}

    monkeypatch.setattr(flows.study, "bolt", bolt)
    monkeypatch.setattr(flows.study, "cost_of", lambda *_: {"sampled": 10, "trained": 20})
    config = StudyConfig(base=base, arms=[{"name": "dpo"}, {"name": "rloo", "settings": RLOO}], seeds=(1, 2))
    found = study(config)
    assert asked == [("dpo", 1), ("rloo", 1), ("dpo", 2), ("rloo", 2)]
    kept = json.loads(Path(found["path"]).read_text())
    assert kept["failed"] == dict.fromkeys(("rloo/1", "rloo/2"), "GuardError: KL to pi_0 is 3; limit 0.5")
    assert len(kept["rows"]) == 6  # a guard may stop a run at its end
    assert "rloo/1 failed" in Path(found["path"]).with_suffix(".md").read_text()
    asked.clear()
    study(config.model_copy(update={"only": ("dpo/2",)}))
    assert asked == [("dpo", 2)]
