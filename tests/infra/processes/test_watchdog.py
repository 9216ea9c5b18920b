from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.processes.identity import began
from infra.processes.watchdog import GuardedProcess


@pytest.fixture
def oddly_named(tmp_path: Path) -> Iterator[int]:
    """A process, anybody's, whose name is no UTF-8: the kernel cuts names at 15 bytes, be it within a character."""
    program = os.fsencode(tmp_path) + b"/x) \xff"
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, b"60"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_process_of_any_name_is_in_nobodys_way(oddly_named, tmp_path):
    assert b"\xff" in Path("/proc", str(oddly_named), "stat").read_bytes()
    assert began(oddly_named)
    for status in (0, 3):
        child = GuardedProcess([sys.executable, "-c", f"raise SystemExit({status})"], log_path=tmp_path / "log")
        assert child.wait(30) == status
        child.stop()
    child = GuardedProcess([sys.executable, "-c", "import time; time.sleep(60)"], log_path=tmp_path / "log")
    os.kill(child.pid, 9)  # what it leaves is looked for
    assert child.wait(30) == -9
    child.stop()
    assert (tmp_path / "log").read_text() == ""
