"""The launcher: what a failing trainer leaves to read, and what is left running when its parent is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from infra.processes.torchrun import TrainerError, launch, metrics_path
from infra.processes.watchdog import _descendants

MODULE = """
import json, os, sys, time
config = json.load(open(sys.argv[1]))
if config["todo"] == "crash" and os.environ["RANK"] == "1":
    raise RuntimeError("rank one is out of luck")
if config["todo"] == "sleep":
    time.sleep(300)
open(config["out"] + os.environ["RANK"], "w").write(json.dumps(
    [os.environ[name] for name in ("WORLD_SIZE", "MASTER_ADDR", "BOLT_TRAINER_METRICS")]))
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
def test_ranks_get_configuration_metrics_path_and_an_address_without_a_name(module: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "train.log"
    launch(module, Todo(todo="run", out=tmp_path / "rank"), ranks=2, log_path=log)
    for rank in ("rank0", "rank1"):  # they meet where no name must be looked up
        assert json.loads((tmp_path / rank).read_text()) == ["2", "127.0.0.1", str(metrics_path(log))]
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
