"""What a run sets up for all its steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from infra.settings import PROJECT_ROOT

ENDS = """
from types import SimpleNamespace
from flows.stages.common import Estimates
from flows.stages.run import Run
run = SimpleNamespace(estimates=Estimates(generated_per_gpu_second=10), servers=SimpleNamespace(devices=lambda: 2))
run._speed = lambda name: Run._speed(run, name)
print(Run._expected(run, "responses", 72_000, {}))
"""
LINE = """
import logging
from prefect import flow  # sets its logging up
from flows.stages.logs import show_own_logs
show_own_logs()
logging.getLogger("infra.steps.progress").info("responses: 12 of 40 requests")
logging.getLogger("httpx").info("noise")
"""


@pytest.mark.parametrize(("level", "shown"), [("INFO", True), ("WARNING", False)])
def test_progress_lines_reach_the_terminal(level, shown):
    """Prefect gives our loggers handlers, but no level, so that INFO lines were lost."""
    env = {**os.environ, "PREFECT_LOGGING_EXTRA_LOGGERS": "infra,tasks", "PREFECT_LOGGING_LEVEL": level}
    done = subprocess.run([sys.executable, "-c", LINE], cwd=PROJECT_ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("infra.steps.progress - responses: 12 of 40 requests" in done.stderr) == shown
    assert "noise" not in done.stderr


def test_a_steps_start_says_what_is_expected_and_until_when():
    done = subprocess.run([sys.executable, "-c", ENDS], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"72,000 tokens.* expected, until about \d\d:\d\d, less what is cached\n", done.stdout)
