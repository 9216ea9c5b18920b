"""Trainings by every method, killed at random steps in every way, end with the undisturbed model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from interrupted import MODULES, assert_same_model, config_of, steps_logged
from runs import ended, started
from tiny import make_model

from infra.processes.torchrun import metrics_path
from infra.processes.watchdog import _descendants
from infra.training.checkpoints import checkpoints_folder, newest, read
from infra.training.config import trained_path

FLOW = Path(__file__).with_name("training_flow.py")
KILLS = ("rank", "torchrun", "flow", "all", "rank")
EPOCHS, STEPS = 40, 120


def words(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def victims(run: subprocess.Popen[str], kind: str, method: str) -> list[int]:
    """The processes that a kill of this kind ends: the others are left to notice it."""
    below = list(_descendants(run.pid))
    if kind == "flow":
        return [run.pid]
    if kind == "all":
        return [run.pid, *below]
    module = f"-m {MODULES[method]}"
    torchrun = [pid for pid in below if "torch.distributed.run" in words(pid)]
    ranks = [pid for pid in below if module in words(pid) and "torch.distributed.run" not in words(pid)]
    return torchrun[-1:] if kind == "torchrun" else [random.choice(ranks)]


def gone(pids: list[int]) -> bool:
    return not any(words(pid) for pid in pids)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("method", "stage"),
    [*product(["sft", "dpo"], [0, 2, 3]), ("rl", 2), ("rl", 3), ("on_policy", 2), ("on_policy", 3)],
)
def test_a_training_killed_at_five_random_steps_ends_with_the_same_model(
    method: str, stage: int, tmp_path: Path
) -> None:
    policy = make_model(tmp_path / "policy")

    def run(folder: Path, **changes: Any) -> subprocess.Popen[str]:
        config = config_of(method, folder, policy, zero_stage=stage, epochs=EPOCHS, **changes)
        (folder / "config.json").write_text(config.model_dump_json())
        command = [FLOW, folder / "config.json", MODULES[method], "2", str(tmp_path / "store")]
        return started(command, folder / "flow.log", {})

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert ended(run(calm, checkpoint_minutes=60), 300) == 0
    resumed_from = 0
    for kind in KILLS:
        step = resumed_from + random.randint(1, 12)
        metrics_path(killed / "train.log").unlink(missing_ok=True)  # else the steps of the run before are seen
        running = run(killed)
        deadline = time.monotonic() + 300
        while not [line for line in steps_logged(killed) if line["step"] >= step]:
            assert running.poll() is None, (killed / "flow.log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        below = list(_descendants(running.pid))
        for pid in victims(running, kind, method):
            os.kill(pid, signal.SIGKILL)
        assert ended(running, 120) != 0
        deadline = time.monotonic() + 60
        while not gone(below):
            assert time.monotonic() < deadline, f"left running after the kill of {kind}"
            time.sleep(0.1)
        last = newest(checkpoints_folder(config_of(method, killed, policy).output))
        resumed_from = read(last).step if last else 0
        print(f"{method}, ZeRO-{stage}: {kind} killed at step {step}, the last checkpoint is that of {resumed_from}")
    assert ended(run(killed), 300) == 0
    losses = [[line["loss"] for line in steps_logged(folder)] for folder in (calm, killed)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert len(losses[1]) == STEPS
    assert_same_model(calm, killed)
    report = json.loads(trained_path(config_of(method, killed, policy).output).read_text())
    assert report["resumed_at"] == resumed_from
