"""Which trackers there are, and what they are told: before anything is trained, and without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.errors import BadInput
from infra.training import trackers
from infra.training.config import SftConfig, SftRecipe
from infra.training.trackers import check_trackers, environment, is_installed, without_secrets


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SftConfig:
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT", "WANDB_LOG_MODEL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    output = tmp_path / "training" / "sft-abc-x1" / "model"
    return SftConfig(model=tmp_path, data=(tmp_path,), output=output, name="sft-abc", tracking=tmp_path / "tracking")


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"report_to.*\n.*'tensorboard', 'wandb', 'mlflow' or 'trackio'"):
        SftRecipe(report_to=("wandb", "visdom"))


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "is_installed", lambda tracker: tracker != "mlflow")
    check_trackers(("tensorboard", "wandb"), "config.sft.report_to")
    with pytest.raises(BadInput, match=r"^config.sft.report_to: mlflow is not installed .* mlflow-skinny`"):
        check_trackers(("tensorboard", "mlflow"), "config.sft.report_to")


def test_a_folder_of_a_trackers_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trackyard").mkdir()
    assert not is_installed("trackyard")
    (tmp_path / "trackyard" / "__init__.py").touch()
    assert is_installed("trackyard")


def test_what_is_set_in_the_environment_stays(config: SftConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(config)
    assert (told["WANDB_PROJECT"], told["MLFLOW_EXPERIMENT_NAME"]) == ("bolt", "bolt")
    assert told["WANDB_RUN_ID"] == "sft-abc-x1"  # a resumed training goes on in the same run
    assert told["TENSORBOARD_LOGGING_DIR"] == str(config.tracking / "tensorboard" / "sft-abc")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/logs")
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    changed = environment(config)
    assert (changed["WANDB_PROJECT"], changed["MLFLOW_TRACKING_URI"]) == ("mine", "http://127.0.0.1:5000")
    assert changed["TENSORBOARD_LOGGING_DIR"] == "/logs/sft-abc"  # two trainings never share a folder
    assert changed["WANDB_LOG_MODEL"] == "false"


def test_no_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SOME_TOKEN", "short")
    said = "key 0123456789abcdef refused by https://ada:hunter2@tracker.example:5000/api, shortly"
    assert without_secrets(said) == "key *** refused by https://***@tracker.example:5000/api, shortly"
