"""After SIGTERM or Ctrl-C a run soon ends with all that it started, and the next run resumes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import PrefectServer, ended, started, wait_for
from small import command_lines

from infra.operations.inventory import artifacts
from infra.processes import watchdog
from infra.processes.torchrun import launch
from infra.processes.watchdog import EndingError, GuardedProcess, end_all
from infra.settings import Settings
from infra.store.claims import claimed
from infra.store.manifest import Provenance
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import write_table


@pytest.fixture
def not_ending():
    yield
    watchdog.ending.clear()


def test_the_end_reaches_every_thread_that_waits(tmp_path, local_claim, not_ending):
    """One thread waits for a child, one for another run's claim: both end at once, and nothing more is started."""
    child = GuardedProcess([sys.executable, "-c", "import time; time.sleep(300)"], log_path=tmp_path / "log")
    results: list[object] = []

    def waiting_for_the_claim() -> None:
        try:
            with claimed(local_claim, "step", "key"):
                results.append("claimed")
        except EndingError as error:
            results.append(error)

    threads = [
        threading.Thread(target=lambda: results.append(child.wait())),
        threading.Thread(target=waiting_for_the_claim),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert results == []
    began = time.monotonic()
    end_all()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < 8
    assert sorted(type(each).__name__ for each in results) == ["EndingError", "int"]
    with pytest.raises(EndingError, match="told to end"):
        GuardedProcess([sys.executable, "-c", ""], log_path=tmp_path / "log")
    with pytest.raises(EndingError):
        launch("json.tool", Settings(), ranks=1, log_path=tmp_path / "train.log")


@pytest.fixture
def local_claim(tmp_path):
    """A store in which a process that seems to be alive on another machine holds a claim."""
    store = Store.open(Settings(store=str(tmp_path / "store")))
    claim = {"holder": "other", "beat": 0, "machine": "elsewhere", "pid": 1, "started": 0.0}
    store.write_bytes("claims/step-key.json", json.dumps(claim).encode())
    return store


def training(place: Path, prefect: PrefectServer, epochs: int):
    """`python -m flows sft/nano` on a few rows."""
    environment = prefect.environment() | {"BOLT_STORE": str(place / "store"), "BOLT_WORK_DIR": str(place / "work")}
    settings = ("config.longcot=longcot/k", f"config.sft.epochs={epochs}")
    command = ["-m", "flows", "sft/nano", *(word for each in settings for word in ("--set", each))]
    return started(command, place / "log.txt", environment)


def longcot(store: Store, rows: int = 32) -> None:
    row = {"query_id": "q", "sample": 0, "reward": 1.0}
    row |= {"query": "what day ?", "thoughts": "plan : one .", "solution": "one", "format": "bolt"}
    names = {field.name for field in LONGCOT}
    assert set(row) <= names, names
    write_table(store, "longcot", "k", LONGCOT, [[{**row, "query_id": f"q{n}"} for n in range(rows)]], Provenance())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "again"),
    [
        (signal.SIGTERM, False),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.faults),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.faults),
    ],
)
def test_a_signal_during_a_training_ends_all_of_it_and_the_next_run_trains(tmp_path, prefect, signum, again):
    store = Store.open(Settings(store=str(tmp_path / "store")))
    longcot(store)
    run = training(tmp_path, prefect, epochs=2000)
    work = str(tmp_path / "work")
    wait_for(lambda: list((tmp_path / "work").glob("training/*/train.metrics.jsonl")), 120)
    assert len(command_lines([work])) >= 3  # watchdog, torchrun, ranks
    began = time.monotonic()
    run.send_signal(signum)
    assert ended(run, 20) != 0, (tmp_path / "log.txt").read_text()[-5000:]
    assert time.monotonic() - began < 20
    assert command_lines([work]) == []
    assert store.list("claims") == []
    assert [each.folder for each in artifacts(store) if each.folder.startswith("sft/")] == []
    if again:
        assert ended(training(tmp_path, prefect, epochs=1)) == 0, (tmp_path / "log.txt").read_text()[-5000:]
        assert len([each for each in artifacts(store) if each.folder.startswith("sft/") and each.manifest]) == 1


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("moment", ["logs/policy-*.log", "ledgers/responses-*.jsonl"])
def test_sigterm_while_a_server_starts_or_samples_ends_all_of_it(tmp_path, prefect, moment):
    environment = {"BOLT_STORE": str(tmp_path / "store"), "BOLT_WORK_DIR": str(tmp_path / "work")}
    command = ["-m", "flows", "bootstrap/nano"]
    run = started(command, tmp_path / "log.txt", prefect.environment() | environment)
    wait_for(lambda: any(path.stat().st_size for path in (tmp_path / "work").glob(moment)), 180)
    run.send_signal(signal.SIGTERM)
    assert ended(run, 30) != 0, (tmp_path / "log.txt").read_text()[-5000:]
    assert command_lines([str(tmp_path)]) == []
    store = Store.open(Settings(store=str(tmp_path / "store")))
    assert store.list("claims") == []
    assert [each.folder for each in artifacts(store) if each.folder.startswith("responses/")] == []


GRANDCHILDREN = """
import subprocess, sys, time
for own_session in (False, True):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300) # MARK"], start_new_session=own_session)
time.sleep(300) # MARK
"""


@pytest.mark.parametrize("notice", ["poll", "wait", "stop"])
def test_a_killed_watchdog_takes_its_command_with_it_and_what_that_started(tmp_path, notice):
    """The kernel ends the command. What the command started, in its session or in another, is ended by us."""
    code = GRANDCHILDREN.replace("MARK", str(tmp_path))
    child = GuardedProcess([sys.executable, "-c", code], log_path=tmp_path / "log")
    mark = f"# {tmp_path}"
    below = lambda: {pid for pid, _ in command_lines([mark]) if pid != child.pid}  # noqa: E731
    wait_for(lambda: len(below()) == 3)
    os.kill(child.pid, signal.SIGKILL)
    if notice == "poll":
        assert wait_for(child.poll, 5) == -signal.SIGKILL
    elif notice == "wait":
        assert child.wait() == -signal.SIGKILL
    else:
        child.stop()
    wait_for(lambda: not below(), 5)
    child.stop()
