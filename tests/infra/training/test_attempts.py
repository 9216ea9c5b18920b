"""The folders of attempts at a training: which is gone on in, which is removed, which is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.training.attempts import attempt_folder, finish_attempt, is_finished, model_path
from infra.training.checkpoints import Checkpoint, checkpoint_name, checkpoints_folder, finish


def test_attempts_at_once_have_a_folder_each_and_leave_none(tmp_path: Path) -> None:
    with attempt_folder(tmp_path, "sft-k") as one:
        (one / "train.log").write_text("one")
        with attempt_folder(tmp_path, "sft-k") as two, attempt_folder(tmp_path, "dpo-1-k") as other:
            assert len({one, two, other}) == 3
            assert {folder.name.rpartition("-")[0] for folder in (one, two)} == {"sft-k"}
        assert (one / "train.log").read_text() == "one"
    assert not list(tmp_path.iterdir())


def test_many_attempts_at_once_never_take_a_living_one_for_dead(tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        with attempt_folder(tmp_path, "sft-k") as folder:
            (folder / "train.log").write_text("x")
            time.sleep(0.002)
            return (folder / "train.log").exists()

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(attempt, range(200)))
    assert not list(tmp_path.iterdir())


def test_a_failed_attempt_stays_until_the_next_one_of_its_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), attempt_folder(tmp_path, "sft-k") as failed:  # noqa: PT012
        (failed / "train.log").write_text("words")
        raise RuntimeError
    with attempt_folder(tmp_path, "sft-other"):
        assert (failed / "train.log").read_text() == "words"
    with attempt_folder(tmp_path, "sft-k"):
        assert not failed.exists()


def test_a_finished_attempt_that_was_not_published_is_taken_up(tmp_path: Path) -> None:
    for attempt in range(2):
        with pytest.raises(RuntimeError), attempt_folder(tmp_path, "sft-k") as folder:  # noqa: PT012
            assert is_finished(folder) == (attempt == 1)
            (folder / "weights").touch()
            finish_attempt(folder)
            raise RuntimeError("the store is away")
    with attempt_folder(tmp_path, "sft-k") as folder, attempt_folder(tmp_path, "sft-k") as other:
        assert (folder / "weights").exists()
        assert not is_finished(other)  # the first is in use
    assert not list(tmp_path.iterdir())


def test_what_is_left_of_a_folder_that_was_being_removed_is_not_taken_up(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as killed, attempt_folder(tmp_path, "sft-k") as folder:
        (folder / "weights").touch()
        finish_attempt(folder)
        killed.setattr("shutil.rmtree", lambda *_, **__: None)  # the process is killed before it
        left = folder
    with attempt_folder(tmp_path, "sft-k") as again:
        assert again != left
        assert not left.exists()


HOLDER = """
import sys, time
from pathlib import Path
from infra.training.attempts import attempt_folder
with attempt_folder(Path(sys.argv[1]), "sft-k") as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_living_process_keeps_its_folder_and_a_killed_one_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        held = Path(holder.stdout.readline().strip())
        with attempt_folder(tmp_path, "sft-k"):
            assert held.is_dir()
        holder.kill()
    assert held.is_dir()
    with attempt_folder(tmp_path, "sft-k") as mine:
        assert list(tmp_path.iterdir()) == [mine]


def interrupted(parent: Path, *steps: int) -> Path:
    """An attempt that was killed after its checkpoints at these steps."""
    with pytest.raises(KeyboardInterrupt), attempt_folder(parent, "sft-k") as folder:  # noqa: PT012
        for step in steps:
            target = checkpoints_folder(model_path(folder)) / checkpoint_name(step)
            target.mkdir(parents=True)
            finish(target, Checkpoint(step=step, steps=100, seconds=1, settings={}, files=()))
        raise KeyboardInterrupt
    return folder


def test_a_killed_attempt_with_a_checkpoint_is_taken_up(tmp_path: Path) -> None:
    killed = interrupted(tmp_path, 5, 12)
    with attempt_folder(tmp_path, "sft-k") as again:
        assert again == killed
    assert not list(tmp_path.iterdir())


def test_of_two_killed_attempts_the_one_that_got_further_is_taken_up(tmp_path: Path) -> None:
    with attempt_folder(tmp_path, "sft-k"):  # keeps the two from sharing one folder
        first = interrupted(tmp_path, 9)
        with pytest.raises(KeyboardInterrupt), attempt_folder(tmp_path, "sft-k") as taken:  # noqa: PT012
            second = interrupted(tmp_path, 20)
            raise KeyboardInterrupt
    assert taken == first != second
    with attempt_folder(tmp_path, "sft-k") as again:
        assert again == second
        assert not first.exists()


def test_locks_work_where_only_files_open_for_writing_can_be_locked(tmp_path: Path, monkeypatch) -> None:
    """As on NFS, where all machines of a training see the folder."""
    lock = fcntl.flock

    def on_nfs(descriptor: int, flags: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", on_nfs)
    with attempt_folder(tmp_path / "training", "sft-k") as one, attempt_folder(tmp_path / "training", "sft-k") as two:
        assert one != two
    assert not list((tmp_path / "training").iterdir())
    assert [path.name for path in tmp_path.glob(".training.locks/*")] == ["all"]
