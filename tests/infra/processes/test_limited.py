from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.processes.limited import Limited, LimitedError, NoResult

GB = 1 << 30
PROJECT = Path(__file__).parents[3]


def limited(function, timeout_s=60.0, memory_bytes=GB):
    return Limited(function, timeout_s=timeout_s, memory_bytes=memory_bytes)


def gone(pid):
    """Whether a process has ended, within 10 s."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_one_child_answers_one_call_after_another():
    with limited("os:getpid") as pid:
        child = pid()
        assert child != os.getpid()
        assert pid() == child
        pid.close()
        assert gone(child)
        assert pid() != child  # a call after the end starts it again
        child = pid()
        pid.close()
        pid.close()
    assert gone(child)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def echo():
    with limited("copy:copy") as echo:
        yield echo


@settings(max_examples=200, deadline=None)
@given(values)
def test_json_values_come_back_as_they_were(echo, value):
    assert echo(value) == value


def test_texts_of_any_size_and_any_characters(echo):
    for text in ("", "\0", "\n", "\r\n\u2028", "\ud800", "x" * 10_000_000, "é\n" * 1_000_000):
        assert echo(text) == text


def test_what_is_no_json_is_refused(echo):
    for value in (float("nan"), {1, 2}, b"x"):
        with pytest.raises((ValueError, TypeError)):
            echo(value)
    assert echo(1) == 1


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("time:sleep", [60]), ("operator:pow", [9**9, 9**9])],  # waits; and C code that lets no other thread run
)
def test_a_call_over_its_time_is_ended_and_the_next_one_is_answered(function, arguments):
    with limited(function, timeout_s=0.5) as call:
        for _ in range(2):
            began = time.monotonic()
            assert call(*arguments) == NoResult("time", "over 0.5 s")
            assert time.monotonic() - began < 30  # with a start of the child
        assert call(*[0 for _ in arguments]) in (None, 1)


def test_the_time_to_hand_over_arguments_counts():
    """A child that stands still reads none of them."""
    with limited("copy:copy", timeout_s=1.0) as call:
        assert call("warm") == "warm"
        os.kill(call._child.pid, signal.SIGSTOP)
        assert call("x" * 10_000_000) == NoResult("time", "over 1 s")
        assert call("x") == "x"


def test_a_call_over_its_memory_gives_a_reason():
    with limited("builtins:bytearray") as call:
        assert call(4 * GB) == NoResult("memory", "over the limit")
        assert call(-1) == NoResult("raised", "ValueError: negative count")


@pytest.mark.parametrize(
    ("function", "arguments", "reason", "detail"),
    [
        ("os:abort", [], "ended", "signal 6"),
        ("os:_exit", [3], "ended", "exit status 3"),
        ("sys:exit", [0], "ended", "exit status 0"),
        ("os:kill", [0, 9], "ended", "signal 9"),
        ("operator:truediv", [1, 0], "raised", "ZeroDivisionError: division by zero"),
        ("builtins:set", [], "raised", "TypeError: Object of type set is not JSON serializable"),
        ("builtins:float", ["nan"], "raised", "ValueError: Out of range float values are not JSON compliant"),
    ],
)
def test_a_call_that_breaks_gives_a_reason_and_breaks_no_other(function, arguments, reason, detail):
    with limited(function) as call:
        for _ in range(2):
            assert call(*arguments) == NoResult(reason, detail)


def test_what_the_function_prints_is_no_answer(capfd):
    with limited("builtins:print") as call:
        assert call('{"result": 1}') is None
        assert call("again") is None
    assert capfd.readouterr().err == '{"result": 1}\nagain\n'


def test_the_child_has_no_secrets_and_no_input(monkeypatch):
    monkeypatch.setenv("BOLT_SECRET_ACCESS_KEY", "s3cr3t")
    with limited("os:getenv") as call:
        assert call("BOLT_SECRET_ACCESS_KEY") is None
        assert call("PATH") == os.environ["PATH"]
    with limited("builtins:input") as call:
        assert call() == NoResult("raised", "EOFError: EOF when reading a line")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("math:no_such", "AttributeError: module 'math' has no attribute 'no_such'"),
        ("math", "AttributeError"),
        ("this is:not one", "ModuleNotFoundError"),
    ],
)
def test_a_function_that_is_not_there_is_an_error(function, told):
    with limited(function) as call, pytest.raises(LimitedError, match=f"{function} cannot be called: {told}"):
        call()


def test_too_little_memory_to_start_is_an_error():
    with limited("evals.math_answers:grade", memory_bytes=30 << 20) as call, pytest.raises(LimitedError):
        call("", "")


def test_threads_take_turns(echo):
    found = {}

    def ask(number):
        found[number] = [echo([number, turn]) for turn in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [[number, turn] for turn in range(20)] for number in range(4)}


def test_a_child_that_ended_between_two_calls_is_started_again():
    with limited("os:getpid") as pid:
        child = pid()
        os.kill(child, signal.SIGKILL)
        assert gone(child)
        assert pid() != child


@pytest.mark.parametrize("busy", ["time:sleep", "operator:pow"])
def test_the_child_ends_with_a_parent_that_is_killed(busy):
    arguments = {"time:sleep": "60", "operator:pow": "9**9, 9**9"}[busy]
    program = f"""
import threading
from infra.processes.limited import Limited
call = Limited({busy!r}, timeout_s=60, memory_bytes=1 << 30)
call._start()
print(call._child.pid, flush=True)
call({arguments})
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=PROJECT)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    time.sleep(0.3)  # the call is under way
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    assert gone(child)


def test_a_call_that_is_broken_off_leaves_no_answer_for_the_next():
    def broken_off(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, broken_off)
    try:
        with limited("time:sleep") as call:
            assert call(0) is None
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                call(1)
            assert call._child is None
            assert call(0) is None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
