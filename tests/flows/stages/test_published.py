"""What a run shows in Prefect's UI: the report's tables and plots as artifacts, and a link to the page."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from made_run import MadeRun
from prefect import flow
from prefect.runtime import flow_run
from shown import artifacts_of

from flows.stages.summary import as_text, publish_report
from infra.settings import Settings
from infra.store.store import Store
from tasks.report.bolt_page import bolt_content


@pytest.mark.usefixtures("prefect_server")
def test_the_report_is_published(tmp_path: Path):
    store = Store.open(Settings(store=str(tmp_path / "a store")))
    run = MadeRun(store)

    @flow
    def publishing() -> UUID:
        publish_report(store, run.summary, bolt_content(store, run.summary))
        return UUID(flow_run.id)

    found = artifacts_of(publishing())
    page = tmp_path / "a store" / "runs" / "able-eagle" / "report.html"
    assert page.read_text().startswith("<!doctype html>")
    assert found["bolt-report"] == f"[report.html]({page.as_uri()})"
    assert found["bolt-plots"].count("](data:image/svg+xml;base64,") == 8  # six of the run, and one for each training
    assert {"bolt-stages", "bolt-gains", "bolt-topics", "bolt-funnel", "bolt-steps"} <= found.keys()


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("pair_sum", r"pair\_sum"),
        ("-2.4% to +0.5%", "-2.4% to +0.5%"),
        ("<img src=x>", r"\<img src=x\>"),
        ("[x](javascript:y) ![](http://z)", r"\[x\]\(javascript:y\) \!\[\]\(http\://z\)"),
        ("www.a.org, a@b.org", r"www\.a\.org, a\@b\.org"),
        ("a\\<b>\n# c &lt;", r"a\\\<b\> \# c \&lt;"),
        (0.5, 0.5),
    ],
)
def test_cells_cannot_be_markup_in_prefects_ui(cell, shown):
    assert as_text(cell) == shown
