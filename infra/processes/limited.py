"""Calls of pure functions in a child process, each with limits on time and memory.

This is for code that a model's output can hang or blow up, such as a grader that uses sympy. A thread cannot be
stopped, and an alarm reaches only the main thread and no C code. Child and parent exchange JSON over pipes, one line
per call. Of the parent's environment the child gets only what it needs to find programs and modules, so no secrets.

As a script (this file, run by `Limited`): `python -m infra.processes.limited MODULE:FUNCTION MEMORY_BYTES PARENT_PID`.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from infra.processes.watchdog import end_with_parent

TIMEOUT_S = 20.0  # a call; math-verify's own limits add up to 10 s
MEMORY_BYTES = 4 << 30
_START_S = 120.0  # for the child's imports, on a busy machine
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")


class LimitedError(RuntimeError):
    """The child cannot be started: there is no such module or function, or not enough memory to import it."""


@dataclass(frozen=True)
class NoResult:
    """The outcome of a call that gave no result."""

    reason: Literal["time", "memory", "ended", "raised"]
    """A limit was exceeded, the child process ended, or the function raised (or its result is not JSON)."""
    detail: str


class Limited:
    """A function in a child process, which is started by the first call, and again after a call that broke it.

    Calls from several threads take turns. The child ends with `close()`, and with the thread that started it.
    """

    def __init__(self, function: str, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> None:
        """`function` is `package.module:name`; `memory_bytes` limits the child's address space, modules included."""
        self.function, self.timeout_s, self.memory_bytes = function, timeout_s, memory_bytes
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the function: its result as JSON (a tuple becomes a list), or `NoResult`.

        Raises:
            ValueError, TypeError: the arguments are not JSON.
            LimitedError: the child cannot be started.
        """
        line = _line(list(arguments))
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._start()
            try:
                answer = self._exchange(line, self.timeout_s)
            except BaseException:  # an answer that was not read must not become the next call's
                self._kill()
                raise
            if isinstance(answer, NoResult):
                self._kill()
                return answer
        if "result" in answer:
            return answer["result"]
        return NoResult("raised", answer["raised"])

    def close(self) -> None:
        """End the child. It may be closed twice; another call starts it again."""
        with self._lock:
            self._kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._kill()
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        arguments = [self.function, str(self.memory_bytes), str(os.getpid())]
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "infra.processes.limited", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**inherited, "PYTHONPATH": paths, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C in a terminal is for the parent only
        )
        answer = self._exchange(b"", _START_S)
        if isinstance(answer, NoResult) or "raised" in answer:
            self._kill()
            reason = f"{answer.reason}: {answer.detail}" if isinstance(answer, NoResult) else answer["raised"]
            raise LimitedError(f"{self.function} cannot be called: {reason}")

    def _exchange(self, line: bytes, timeout_s: float) -> dict[str, Any] | NoResult:
        """Send the child a line and wait for the line that it answers."""
        assert self._child is not None
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        began, rest, parts = time.monotonic(), memoryview(line), list[bytes]()
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            if rest:
                os.set_blocking(stdin.fileno(), False)
                ready.register(stdin, selectors.EVENT_WRITE)
            while (left_s := began + timeout_s - time.monotonic()) > 0:
                for key, _ in ready.select(left_s):
                    if key.fileobj is stdout:
                        parts.append(os.read(key.fd, 1 << 20))
                        if not parts[-1]:
                            return self._ended()
                        if parts[-1].endswith(b"\n"):
                            return _answer(b"".join(parts))
                        continue
                    try:
                        rest = rest[os.write(key.fd, rest) :]
                    except BrokenPipeError:
                        return self._ended()
                    if not rest:
                        ready.unregister(stdin)
        return NoResult("time", f"over {timeout_s:g} s")

    def _ended(self) -> NoResult:
        assert self._child is not None
        status = self._child.wait()
        return NoResult("ended", f"signal {-status}" if status < 0 else f"exit status {status}")

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with child:  # at its end the pipes are closed, and the process is waited for
                child.kill()


def _answer(line: bytes) -> dict[str, Any] | NoResult:
    answer: dict[str, Any] = json.loads(line)
    return NoResult("memory", answer["memory"]) if "memory" in answer else answer


def _line(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _called(function: Callable[..., Any], line: bytes) -> bytes:
    """The line that answers a call."""
    try:
        return _line({"result": function(*json.loads(line))})
    except MemoryError:
        return _line({"memory": "over the limit"})
    except Exception as error:  # noqa: BLE001  # whatever it is, it concerns this call only
        return _line({"raised": f"{type(error).__name__}: {str(error)[:500]}"})


def main(name: str, memory_bytes: int, parent: int) -> None:
    """Import the function, report that it is ready, and answer calls until standard input ends."""
    end_with_parent()
    if os.getppid() != parent:  # it was gone before we asked to end with it
        return
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what the function prints
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, MemoryError) as error:  # noqa: BLE001  # reported to the parent, which raises
        answers.write(_line({"raised": f"{type(error).__name__}: {error}"}))
        answers.close()
        return
    answers.write(_line({"result": None}))
    answers.flush()
    for line in calls:
        answers.write(_called(function, line))
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
