"""Trainings that are killed and go on: real ranks, and the model is that of a training that nobody disturbed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from interrupted import MODULES, STEPS, assert_same_model, config_of, steps_logged
from tiny import make_model

import tasks.training.train
from infra.errors import BadInput
from infra.processes.torchrun import TrainerError
from infra.processes.watchdog import _descendants
from infra.settings import Settings
from infra.steps.step import Plan
from infra.store.manifest import Provenance
from infra.store.store import Store
from infra.training.attempts import model_path
from infra.training.checkpoint_copies import copy_last
from infra.training.checkpoints import checkpoints_folder, newest, read
from infra.training.config import DpoConfig, SftConfig, trained_path
from infra.training.hosts import HERE
from tasks.training.train import train


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("policy"))


def trained(method: str, folder: Path, config: SftConfig | DpoConfig, store: Store, ranks: int = 2) -> None:
    plan = Plan(step=method, key="k", provenance=Provenance())
    train(plan, store, MODULES[method], config, ranks, folder / "train.log", HERE, folder)


def processes(words: str) -> list[int]:
    """The processes below this one whose command line has `words`."""
    found = []
    for pid in _descendants(os.getpid()):
        try:
            if words in Path("/proc", str(pid), "cmdline").read_text().replace("\0", " "):
                found.append(pid)
        except OSError:
            pass
    return found


def kill_at(step: int, folder: Path, words: str) -> threading.Thread:
    """Kill one process whose command line has `words` once the training has logged a step."""

    def kill() -> None:
        while not [line for line in steps_logged(folder) if line["step"] >= step]:
            time.sleep(0.02)
        os.kill(processes(words)[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stage"),
    [("sft", 2), *(pytest.param(each, 3, marks=pytest.mark.faults) for each in ("dpo", "rl", "on_policy"))],
)
def test_a_killed_training_goes_on_and_ends_with_the_same_model(
    method: str, stage: int, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SFT goes on in its own folder, DPO on another host, with the copy in the store."""
    said: list[str] = []
    monkeypatch.setattr(tasks.training.train.log, "info", lambda text, *values: said.append(text % values))
    store = Store.open(Settings(store=str(tmp_path / "store")))
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    trained(method, calm, config_of(method, calm, policy, zero_stage=stage, checkpoint_minutes=60), store)
    assert not checkpoints_folder(model_path(calm)).exists()

    config = config_of(method, disturbed, policy, zero_stage=stage)
    killing = kill_at(5, disturbed, f"-m {MODULES[method]}")
    with pytest.raises(TrainerError):
        trained(method, disturbed, config, store)
    killing.join()
    last = newest(checkpoints_folder(config.output))
    assert last
    step = read(last).step
    assert 4 <= step < STEPS
    if method == "dpo":
        copy_last(store, method, "k", checkpoints_folder(config.output))
        disturbed = tmp_path / "elsewhere"
        config = config_of(method, disturbed, policy, zero_stage=stage)
    with pytest.raises(BadInput, match=rf"step {step} of {STEPS}\) is of .*: ranks was 2 and is now 1"):
        trained(method, disturbed, config, store, ranks=1)
    trained(method, disturbed, config, store)

    assert said == [f"{method}: resumed at step {step} of {STEPS}"]
    report = json.loads(trained_path(config.output).read_text())
    assert (report["steps"], report["resumed_at"]) == (STEPS, step)
    one, other = steps_logged(calm), steps_logged(disturbed)
    assert [line["step"] for line in other] == list(range(1, STEPS + 1))
    for name in {"loss", "learning_rate", "num_tokens"} & set(one[0]):
        assert [line[name] for line in other] == pytest.approx([line[name] for line in one], abs=1e-6), name
    assert_same_model(calm, disturbed)
    assert len(list(checkpoints_folder(config.output).iterdir())) == 2  # older ones are deleted


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No process started meanwhile can write a file beyond `size` bytes: as on a disk that is full by then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.faults
def test_without_room_for_checkpoints_the_training_goes_on_and_says_so(policy: Path, tmp_path: Path) -> None:
    """Once where too little room is found beforehand, once where writing fails."""
    store = Store.open(Settings(store=str(tmp_path / "store")))
    for kind, limit, said in (("small", 1_000, "GB are needed in"), ("failing", 0, "the training goes on")):
        with small_disk(tmp_path / kind, limit) if limit else file_limit(450_000):
            folder = tmp_path / kind / "attempt"
            config = config_of("sft", folder, policy, epochs=1)
            trained("sft", folder, config, store)
            log = (folder / "train.log").read_text()
            assert "no checkpoint at step 1, and there is none before it; the training goes on: " in log
            assert said in log
            assert len(steps_logged(folder)) == STEPS / 4
            assert (config.output / "model.safetensors").exists()
            assert newest(checkpoints_folder(config.output)) is None


@pytest.mark.slow
def test_without_room_for_the_model_a_training_is_not_begun(policy: Path, tmp_path: Path) -> None:
    store = Store.open(Settings(store=str(tmp_path / "store")))
    with small_disk(tmp_path / "disk", 200):
        folder = tmp_path / "disk" / "attempt"
        with pytest.raises(TrainerError, match=r"the trained model needs .* GB, and .* GB are free: make room"):
            trained("sft", folder, config_of("sft", folder, policy), store)
        assert steps_logged(folder) == []
