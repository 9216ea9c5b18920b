"""Child processes that cannot outlive their parent.

Servers and trainers start grandchildren in sessions of their own (vLLM's engine core, torchrun's ranks), so ending one
process group does not end them all. Every heavy process therefore runs under a tiny watchdog (this file, run as a
script with the standard library only). The watchdog is a *sub-reaper*: the kernel makes it the parent of whatever its
descendants leave behind, so it can end all of them. It holds the read end of a pipe whose write end only the parent
has. When the parent ends, even by `kill -9`, the pipe closes and everything below the watchdog is ended. If the
watchdog itself is killed, the parent ends what is left: all that is in its session, or has its mark in the environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TERM_GRACE_S = 5.0
_ORPHAN_CHECK_S = 1.0
_MARK = "BOLT_WATCHDOG"  # environment variable of a watchdog's descendants: they may have sessions of their own
PARENT_GONE = 113
"""Exit status of the watchdog when its parent disappeared."""

ending = threading.Event()  # this process was told to end
_Status = TypeVar("_Status", int, int | None)
_lock = threading.Lock()
_living: set[GuardedProcess] = set()


class EndingError(RuntimeError):
    """This process is ending: it starts no other process and waits for none."""


def refuse_when_ending() -> None:
    """Raise `EndingError` if this process was told to end. For work that does not wait for a child process."""
    if ending.is_set():
        raise EndingError("this run was told to end")


def end_all() -> None:
    """End every guarded process, since this process was told to end. The threads that wait for one end with them."""
    with _lock:
        ending.set()
        living = list(_living)
    for process in living:
        process.hang_up()
    for process in living:
        process.stop()


class GuardedProcess:
    """A command under a watchdog, ended with all its descendants by `stop()` and by this process's own end.

    Standard output and error are appended to `log_path`. Environment variables are inherited; `env` adds to them and
    never reaches a command line.

    Raises:
        OSError: the log cannot be written, or the interpreter cannot be started.
        EndingError: `end_all()` was called.
    """

    def __init__(self, command: Sequence[str], *, log_path: Path, env: Mapping[str, str] | None = None) -> None:
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_start = log_path.stat().st_size if log_path.exists() else 0
        self._mark = uuid4().hex
        read_end, self._write_end = os.pipe()  # not inheritable: no other child can keep the write end open
        try:
            with _lock, log_path.open("ab") as log:
                refuse_when_ending()
                self._watchdog = subprocess.Popen(
                    [sys.executable, "-ISB", str(Path(__file__).resolve()), str(read_end), str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {}), _MARK: self._mark},
                    pass_fds=(read_end,),
                    start_new_session=True,
                )
                _living.add(self)
        except BaseException:
            os.close(self._write_end)
            raise
        finally:
            os.close(read_end)

    @property
    def pid(self) -> int:
        """Process id of the watchdog, which is also the leader of the process group."""
        return self._watchdog.pid

    def poll(self) -> int | None:
        """The command's exit status (128 + signal number when a signal ended it), or None while it runs."""
        return self._ended(self._watchdog.poll())

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the command's exit status. Raises `TimeoutError` after `timeout_s` seconds and leaves it running."""
        try:
            return self._ended(self._watchdog.wait(timeout_s))
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"still running after {timeout_s} s") from error

    def stop(self) -> None:
        """End the command and every descendant, and return when all are gone. May be called again, from any thread."""
        self.hang_up()
        try:
            self._watchdog.wait(4 * _TERM_GRACE_S)
        except subprocess.TimeoutExpired:
            _kill([*_descendants(self.pid), self.pid], signal.SIGKILL)
            self._watchdog.wait()
        self._ended(self._watchdog.returncode)
        _living.discard(self)

    def _ended(self, status: _Status) -> _Status:
        """The given status. If a signal ended the watchdog itself, what it left behind is killed first."""
        if status is not None and status < 0:
            while left := _left_behind(self.pid, self._mark):
                _kill(left, signal.SIGKILL)
                time.sleep(0.02)
        return status

    def hang_up(self) -> None:
        """Have the watchdog end the command and every descendant, without waiting for it."""
        with _lock:
            write_end, self._write_end = self._write_end, -1
        if write_end >= 0:
            os.close(write_end)

    def tail(self, lines: int = 40) -> str:
        """The last `lines` lines that this command logged."""
        return tail(self.log_path, lines, self.log_start)


def tail(log_path: Path, lines: int, start: int = 0) -> str:
    """The last `lines` lines of a log after its first `start` bytes; "" if there is no such file."""
    if not log_path.exists():
        return ""
    with log_path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(start, size - 400 * lines))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def _living_processes() -> Iterator[tuple[Path, int, int]]:
    """The folder in /proc of each process (except zombies), and the ids of its parent and its session."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # ended while we looked
            continue
        state, parent, _, session = stat.rpartition(")")[2].split()[:4]  # after the name, which may be any bytes
        if state != "Z":
            yield folder, int(parent), int(session)


def _left_behind(session: int, mark: str) -> list[int]:
    """Ids of the processes (except zombies) that are in a session or started with the mark in their environment."""
    found, sought = [], f"{_MARK}={mark}".encode()
    for folder, _, its_session in _living_processes():
        try:
            marked = sought in (folder / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended while we looked, or another user's
            continue
        if its_session == session or marked:
            found.append(int(folder.name))
    return found


def _descendants(root: int) -> list[int]:
    """Ids of all living descendants of `root` (except zombies), read from /proc."""
    children: dict[int, list[int]] = {}
    for folder, parent, _ in _living_processes():
        children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    level = children.get(root, [])
    while level:
        found += level
        level = [child for process in level for child in children.get(process, [])]
    return found


def _kill(processes: Iterable[int], signum: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signum)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask `child` to end, wait for the grace period, then kill all descendants of this process until none is left."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_TERM_GRACE_S)
    while rest := _descendants(os.getpid()):
        _kill(rest, signal.SIGKILL)
        time.sleep(0.02)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, even by `kill -9`."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def main(pipe: int, parent: int, command: Sequence[str]) -> int:
    """Run `command` until it ends, `pipe` closes, process `parent` is gone, or SIGTERM arrives. Then end all
    descendants."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    told_to_stop: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda received, _frame: told_to_stop.append(received))
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)  # only wakes the loop below
    child = subprocess.Popen(command, preexec_fn=end_with_parent)  # noqa: PLW1509  # this process has one thread
    while child.poll() is None and not told_to_stop:
        ready, _, _ = select.select([pipe, wake_read], [], [], _ORPHAN_CHECK_S)
        if wake_read in ready:
            os.read(wake_read, 4096)
        if pipe in ready or os.getppid() != parent:
            told_to_stop.append(0)
    status = child.poll()
    _end(child)
    if status is None:
        return PARENT_GONE
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
