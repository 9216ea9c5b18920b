"""The processes of the local stack: only those that it started are ever ended, and only the server has secrets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.operations import stack
from infra.operations.stack import Process, Stack, StackError, down, environment, main, up
from infra.processes.identity import began, boot

SLEEP = "import time; time.sleep(60)"
SLEEPS = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"


@pytest.fixture
def sleeper():
    """A process with a child, in its own session."""
    found = subprocess.Popen([sys.executable, "-c", SLEEPS], start_new_session=True)
    end = time.monotonic() + 20
    while not psutil.Process(found.pid).children():
        assert time.monotonic() < end
        time.sleep(0.02)
    yield found
    for each in psutil.process_iter():
        if stack._session(each.pid) == found.pid:
            each.kill()
    found.wait()


def known(process: subprocess.Popen[bytes], earlier: int = 0, since: str | None = None) -> Process:
    """`earlier`: in clock ticks."""
    ticks = began(process.pid)
    assert ticks is not None
    return Process(pid=process.pid, began=ticks - earlier, boot=since or boot())


def session(process: subprocess.Popen[bytes]) -> list[int]:
    """The session's living processes, without zombies."""
    living = [each for each in psutil.process_iter() if stack._session(each.pid) == process.pid]
    return [each.pid for each in living if each.status() != psutil.STATUS_ZOMBIE]


def test_a_process_ends_with_its_whole_session(sleeper):
    assert known(sleeper).alive()
    assert len(known(sleeper).members()) == 2
    known(sleeper).end()
    assert session(sleeper) == []


@pytest.mark.parametrize("other", [{"earlier": 1}, {"since": "an earlier start of the machine"}])
def test_a_later_process_with_the_same_id_is_not_ended(sleeper, other):
    last = known(sleeper, **other)
    assert not last.alive()
    last.end()
    assert len(session(sleeper)) == 2


def test_setting_the_clock_changes_no_process(sleeper, monkeypatch):
    """`create_time` is relative to the clock as it is now, so it moves with the clock. Ours does not."""
    worker, created = known(sleeper), psutil.Process(sleeper.pid).create_time()
    moved = psutil._pslinux.boot_time() + 3600
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: moved)
    assert psutil.Process(sleeper.pid).create_time() > created + 3000
    assert worker.alive()
    assert len(worker.members()) == 2


def test_the_children_of_a_killed_worker_are_ended(sleeper):
    worker = known(sleeper)
    sleeper.send_signal(signal.SIGKILL)
    sleeper.wait()
    assert len(worker.members()) == 1
    worker.end()
    assert session(sleeper) == []


def test_the_children_of_a_killed_worker_that_stays_a_zombie_are_ended(sleeper):
    worker = known(sleeper)
    sleeper.send_signal(signal.SIGKILL)  # not waited for: a zombie, as in a container whose init reaps no children
    end = time.monotonic() + 20
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert len(worker.members()) == 1
    worker.end()
    assert session(sleeper) == []


def test_the_children_of_a_killed_worker_are_ended_even_if_another_worker_has_replaced_it(sleeper, tmp_path):
    before = Stack(url="http://127.0.0.1:1/api", processes={"worker": known(sleeper)})
    sleeper.send_signal(signal.SIGKILL)
    sleeper.wait()
    (tmp_path / "stack").mkdir()
    last = f"worker before, process {sleeper.pid}"
    after = stack._started(tmp_path, before, "worker", ["-c", SLEEP])
    assert sorted(after.processes) == ["worker", last]
    assert len(after.processes["worker"].members()) == 1
    assert sorted(down(tmp_path)) == ["worker", last]
    assert session(sleeper) == []
    assert not any(each.members() for each in after.processes.values())


def test_down_ends_the_listed_processes_and_deletes_the_list(sleeper, tmp_path, capsys):
    (tmp_path / "stack.json").write_text(
        Stack(url="http://127.0.0.1:1/api", processes={"server": known(sleeper)}).model_dump_json()
    )
    assert main(["down", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "ended: server\n"
    assert session(sleeper) == []
    assert down(tmp_path) == []


def test_a_taken_port_is_an_error(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} on 127.0.0.1 is taken"):
            up(tmp_path, port)
        assert main(["up", "--home", str(tmp_path), "--port", str(port)]) == 1
    assert "make up PORT=0" in capsys.readouterr().err
    assert not (tmp_path / "stack.json").exists()


def test_the_error_for_a_server_that_ends_at_once_has_its_log(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nosuchdatabase://here")
    with pytest.raises(StackError, match=r"the Prefect server ended; log: .*server\.log; its last lines:"):
        up(tmp_path, 0)
    assert down(tmp_path) == []


def test_only_the_server_gets_the_databases_address(monkeypatch):
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://u:secret@h/d")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_PASSWORD", "secret")
    monkeypatch.setenv("BOLT_STORE", "s3://b")
    home = Path(".bolt")
    of_server, of_worker = (environment(home, "http://127.0.0.1:1/api", server=server) for server in (True, False))
    assert of_server["PREFECT_API_DATABASE_CONNECTION_URL"].endswith("@h/d")
    assert "secret" not in str(of_worker)
    assert of_worker["BOLT_STORE"] == "s3://b"
    assert of_worker["PREFECT_HOME"] == str(home.resolve() / "stack")
    assert set(os.environ) - set(of_worker) == {
        "PREFECT_API_DATABASE_CONNECTION_URL",
        "PREFECT_SERVER_DATABASE_PASSWORD",
    }


def test_no_proxy_stands_between_the_stacks_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", ".corp")
    monkeypatch.delenv("no_proxy", raising=False)
    for server in (True, False):
        of_process = environment(tmp_path, "http://127.0.0.1:1/api", server=server)
        assert of_process["NO_PROXY"] == of_process["no_proxy"] == ".corp,localhost,127.0.0.1,::1"
        assert of_process["HTTP_PROXY"] == "http://proxy.example:3128"
