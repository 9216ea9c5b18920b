"""The one Prefect server of the tests, and a browser, for those that ask for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, sync_playwright

# A slow or busy machine is no failure.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first, so that no worker is left with one at the end (with `--dist loadfile`)."""
    weights: dict[Path, float] = {}
    for item in items:
        allowed = item.get_closest_marker("timeout")
        seconds = allowed.args[0] if allowed else 60 if item.get_closest_marker("slow") else 0
        weights[item.path] = weights.get(item.path, 0) + seconds
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A temporary database and a server process of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "no Chromium here: apt-get install chromium, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()
