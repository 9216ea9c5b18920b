"""Take docs/report.png, the README's picture of a run's report: `python docs/screenshot.py runs/RUN/report.html`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def main(report: Path, target: Path) -> None:
    """Open the report's reader in a headless Chromium and save what it shows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(report.resolve().as_uri())
        page.click("nav >> text=Reader")
        page.wait_for_selector("#found:has-text(' of ')")
        page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).resolve().with_name("report.png"))
