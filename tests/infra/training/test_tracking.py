"""The speed that a trainer logs, and the real trackers, which write to this machine and never stop a training."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from interrupted import STEPS, config_of, steps_logged
from tiny import make_model

from infra.processes.torchrun import launch
from infra.settings import PROJECT_ROOT
from infra.training.config import SftConfig, trained_path
from infra.training.trackers import is_installed

KEY = "0123456789abcdef" * 3
CURVE = {"loss", "grad_norm", "learning_rate", "tokens_per_second", "memory_gb"}


@pytest.mark.parametrize(
    ("device", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA L40", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_peak_is_that_of_the_whole_gpu_of_this_name(device: str, flops: float | None) -> None:
    from infra.training.tracking import peak

    assert peak(device) == flops


def test_flops_are_palms() -> None:
    from infra.training.tracking import flops_per_token

    sizes = {"parameters": 8_000_000_000, "layers": 32, "hidden": 4096, "length": 4096}
    assert flops_per_token(**sizes) == 6 * 8e9 + 12 * 32 * 4096 * 4096


def test_parameters_that_only_look_up_do_not_count() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig

    from infra.training.tracking import training_flops

    sizes = {"vocab_size": 100, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    tied, untied = (LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied)) for tied in (True, False))
    assert training_flops(tied, 50) == training_flops(untied, 50)
    tied.config = MixtralConfig(**sizes, **heads)
    assert training_flops(tied, 50) is None


def test_the_speed_is_that_of_the_steps_since_the_last_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainingArguments
    from transformers.trainer_callback import TrainerControl, TrainerState

    from infra.training import tracking

    clock = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr(tracking.time, "monotonic", lambda: next(clock))
    speed = tracking.Speed(50, bf16=True)
    state, control, seen = TrainerState(), TrainerControl(), []
    args = TrainingArguments("unused", report_to="none", use_cpu=True)
    speed.on_train_begin(args, state, control)
    speed.peak, speed.flops = 1000.0, 2.0
    for tokens in (500.0, 1500.0):
        logs: dict[str, Any] = {"loss": 1.0, "num_tokens": tokens}
        state.log_history.append({**logs})
        speed.on_log(args, state, control, logs)
        seen.append((logs["tokens_per_second"], logs["mfu"]))
        assert state.log_history[-1] == logs
    assert seen == [(250.0, 0.5), (250.0, 0.5)]
    speed.on_log(args, state, control, totals := {"train_loss": 1.0})
    assert totals == {"train_loss": 1.0}


def reported(tmp_path: Path, trackers: tuple[str, ...], **variables: str) -> tuple[dict[str, str], str]:
    """What stopped the trackers of a made-up training, and its log. Nobody is logged in, and there is no terminal."""
    if missing := [tracker for tracker in trackers if not is_installed(tracker)]:
        pytest.skip(f"not installed here: {', '.join(missing)} (the extra `tracking`)")
    output = tmp_path / "training" / "sft-abc-x1" / "model"
    config = SftConfig(
        model=tmp_path,
        data=(tmp_path,),
        output=output,
        name="sft-abc",
        tracking=tmp_path / "tracking",
        report_to=trackers,
    )
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    names = ("WANDB_", "MLFLOW_", "TRACKIO_", "TENSORBOARD_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    paths = os.pathsep.join([str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "tests" / "infra" / "reported.py"), str(path)],
        env={**kept, "PYTHONPATH": paths, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars in a folder: steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_writes_one_folder_for_each_training(tmp_path: Path) -> None:
    assert reported(tmp_path, ("tensorboard",), TENSORBOARD_LOGGING_DIR=str(tmp_path / "logs"))[0] == {}
    found = scalars(tmp_path / "logs" / "sft-abc")
    assert {f"train/{name}" for name in CURVE} <= found.keys()
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_a_resumed_training_has_its_first_steps_in_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those after the checkpoint are made again, and another host has no file of the first attempt."""
    from infra.training.tracking import replay

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    replay([])
    assert [*tmp_path.iterdir()] == []
    replay([{"step": step, "loss": 1.0 / step, "epoch": 0.5} for step in (1, 2)])
    assert scalars(tmp_path) == {"train/loss": [(1, 1.0), (2, 0.5)], "train/epoch": [(1, 0.5), (2, 0.5)]}


@pytest.mark.slow
def test_without_a_key_wandb_writes_to_disk_and_asks_nobody(tmp_path: Path) -> None:
    stopped, log = reported(tmp_path, ("wandb",), WANDB_PROJECT="mine")
    assert stopped == {}
    assert "W&B: nobody is logged in" in log
    assert len([*(tmp_path / "tracking" / "wandb").glob("offline-run-*-sft-abc-x1/*.wandb")]) == 1
    assert not (tmp_path / "wandb").exists()  # nothing in the folder that the flow runs in


@pytest.mark.slow
@pytest.mark.parametrize("bad", [{"WANDB_BASE_URL": "http://127.0.0.1:9"}, {"WANDB_API_KEY": "bad-secret-key"}])
def test_wandb_cannot_stop_a_training(tmp_path: Path, bad: dict[str, str]) -> None:
    stopped, log = reported(
        tmp_path, ("wandb", "tensorboard"), **{"WANDB_API_KEY": KEY, "WANDB_INIT_TIMEOUT": "5"} | bad
    )
    assert stopped.keys() == {"wandb"}
    assert "nothing more is reported to wandb, at step 0: " in log
    assert KEY not in log
    assert "bad-secret-key" not in log
    assert len(scalars(tmp_path / "tracking" / "tensorboard" / "sft-abc")["train/loss"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("as_folder", [False, True])
def test_mlflow_writes_to_this_machine(tmp_path: Path, as_folder: bool) -> None:
    given = {"MLFLOW_TRACKING_URI": f"file:{tmp_path / 'runs'}", "MLFLOW_EXPERIMENT_NAME": "mine"} if as_folder else {}
    assert reported(tmp_path, ("mlflow",), **given)[0] == {}
    if as_folder:
        assert {path.name for path in (tmp_path / "runs").glob("*/*/metrics/*")} >= CURVE
        return
    with sqlite3.connect(tmp_path / "tracking" / "mlflow.db") as database:
        assert database.execute("select name from runs").fetchall() == [("sft-abc",)]
        assert {name for (name,) in database.execute("select key from metrics")} >= CURVE
        assert ("bolt",) in database.execute("select name from experiments").fetchall()


@pytest.mark.slow
def test_an_mlflow_server_that_is_down_cannot_stop_a_training(tmp_path: Path) -> None:
    stopped, log = reported(tmp_path, ("mlflow",), MLFLOW_TRACKING_URI="http://ada:hunter2hunter2@127.0.0.1:9")
    assert stopped.keys() == {"mlflow"}
    assert "hunter2" not in stopped["mlflow"] + log


@pytest.mark.slow
def test_trackio_writes_to_this_machine(tmp_path: Path) -> None:
    assert reported(tmp_path, ("trackio",))[0] == {}
    with sqlite3.connect(tmp_path / "tracking" / "trackio" / "bolt.db") as database:
        names = database.execute("select run_name, step from metrics").fetchall()
    assert {name for name, _ in names} == {"sft-abc"}


@pytest.mark.slow
def test_all_ranks_tokens_count_and_the_curve_is_kept(tmp_path: Path) -> None:
    config = config_of("sft", tmp_path / "attempt", make_model(tmp_path / "policy"), checkpoint_minutes=60)
    launch("infra.training.sft", config, ranks=2, log_path=tmp_path / "attempt" / "train.log", timeout_s=300)
    lines, report = steps_logged(tmp_path / "attempt"), json.loads(trained_path(config.output).read_text())
    assert all(line.keys() >= CURVE for line in lines)
    assert lines[-1]["num_tokens"] == report["tokens_seen"]  # of both ranks, without padding
    assert report["untracked"] == {}
    found = scalars(tmp_path / "attempt" / "tracking" / "tensorboard" / "training")
    assert [step for step, _ in found["train/loss"]] == list(range(1, STEPS + 1))
