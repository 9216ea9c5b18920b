"""The launcher: what a failing trainer leaves to read, and what is left running when its parent is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import BaseModel

from infra.processes.torchrun import TrainerError, attempt_folder, finish_attempt, is_finished, launch, metrics_path
from infra.processes.watchdog import _descendants

MODULE = """
import json, os, sys, time
config = json.load(open(sys.argv[1]))
if config["todo"] == "crash" and os.environ["RANK"] == "1":
    raise RuntimeError("rank one is out of luck")
if config["todo"] == "sleep":
    time.sleep(300)
open(config["out"] + os.environ["RANK"], "w").write(os.environ["WORLD_SIZE"] + os.environ["BOLT_TRAINER_METRICS"])
"""


class Todo(BaseModel):
    todo: str
    out: Path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "trainer_for_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return "trainer_for_test"


@pytest.mark.slow
def test_ranks_get_the_configuration_and_the_metrics_path(module: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "train.log"
    launch(module, Todo(todo="run", out=tmp_path / "rank"), ranks=2, log_path=log)
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text() == f"2{metrics_path(log)}"
    assert json.loads((tmp_path / "logs" / "train.config.json").read_text())["todo"] == "run"


@pytest.mark.slow
def test_a_crash_shows_the_cause_and_the_log(module: str, tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    with pytest.raises(TrainerError, match=r"(?s)2 ranks ended with status 1.*train.log.*rank one is out of luck$"):
        launch(module, Todo(todo="crash", out=tmp_path / "rank"), ranks=2, log_path=log)


@pytest.mark.slow
def test_a_time_out_ends_the_ranks(module: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TrainerError, match="still running after 8"):
        launch(module, Todo(todo="sleep", out=tmp_path), ranks=1, log_path=tmp_path / "train.log", timeout_s=8)
    assert time.monotonic() - started < 60


PARENT = """
import sys
from pathlib import Path
from tests_todo import Todo
from infra.processes.torchrun import launch
launch("trainer_for_test", Todo(todo="sleep", out=Path("x")), ranks=2, log_path=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_kill_9_of_the_parent_ends_every_rank(module: str, tmp_path: Path) -> None:
    (tmp_path / "tests_todo.py").write_text(
        "from pathlib import Path\nfrom pydantic import BaseModel\nclass Todo(BaseModel):\n  todo: str\n  out: Path\n"
    )
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "train.log")]) as parent:
        deadline = time.monotonic() + 60
        while len(_descendants(parent.pid)) < 4 and time.monotonic() < deadline:  # watchdog, torchrun, two ranks
            time.sleep(0.2)
        left = _descendants(parent.pid)
        assert len(left) >= 4
        parent.kill()
    deadline = time.monotonic() + 15
    while (rest := [pid for pid in left if Path("/proc", str(pid)).exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not rest


# ---- the folder of an attempt


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
from infra.processes.torchrun import attempt_folder
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
