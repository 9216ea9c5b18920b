"""The report in a headless Chromium, opened from file:// as users do: the reader works, model text does nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_run import STAGES, MadeRun
from playwright.sync_api import Browser, Page, expect

from infra.settings import Settings
from infra.store.store import Store
from tasks.report.bolt_page import bolt_content
from tasks.report.report import write_page

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'><svg onload='window.hacked = 1'>"
    "<a href='javascript:window.hacked=1'>html</a> [markdown](javascript:window.hacked=1) "
    "![](http://127.0.0.1:9/x) <!--"
)
PROBLEMS = 450  # more than the list shows at once, and several slices


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    store = Store.open(Settings(store=str(folder / "store")))
    texts = {("sft", 0, 0): HOSTILE, ("online-1", 0, 1): HOSTILE, ("sft", 440, 1): "a needle in the hay"}
    run = MadeRun(store, PROBLEMS, texts)
    with (folder / "report.html").open("wb") as out:
        write_page(out.write, run.summary, bolt_content(store, run.summary))
    return folder / "report.html"


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The open report. A test must end without errors, scripts run by model text, or network requests."""
    shown = browser.new_page(viewport={"width": 1440, "height": 900})
    troubles: list[Any] = []
    shown.on("console", lambda message: troubles.append(message.text))
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    shown.on("dialog", lambda dialog: troubles.append(dialog.message))
    shown.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
    shown.goto(report.as_uri())
    yield shown
    assert shown.evaluate("window.hacked") is None
    assert not troubles
    shown.close()


def reader(page: Page) -> Page:
    page.click("nav >> text=Reader")
    expect(page.locator("#reader")).to_be_visible()  # before that it takes no keys
    expect(page.locator("#found")).to_contain_text(f"{PROBLEMS} of {PROBLEMS}")
    return page


def query(page: Page) -> str:
    return page.inner_text("#query")


def test_the_overview_shows_tables_and_plots(page):
    expect(page.locator("#reader")).to_be_hidden()
    assert page.locator("#overview table").count() == 7
    assert page.locator("img.plot").count() == 8
    widths = page.evaluate("[...document.querySelectorAll('img.plot')].map((img) => img.naturalWidth)")
    assert all(width > 100 for width in widths)
    page.click("text=Counts of each step")
    expect(page.locator("text=dropped: equal scores")).to_be_visible()


def test_one_problem_is_shown_with_all_stages_side_by_side(page):
    reader(page)
    assert page.locator("#answers thead th").all_inner_texts()[1:] == list(STAGES)
    boxes = [box.bounding_box() for box in page.locator("#answers tbody tr").first.locator("td").all()]
    assert len(boxes) == len(STAGES)
    assert len({box["y"] for box in boxes}) == 1
    assert [box["x"] for box in boxes] == sorted({box["x"] for box in boxes})
    expect(page.locator("#answers")).to_contain_text("correct: sun")
    expect(page.locator("#answers")).to_contain_text("wrong: no answer found")


def test_thoughts_are_collapsed_until_expanded(page):
    reader(page)
    first = page.locator("details.thoughts .text").first
    expect(first).to_be_hidden()
    page.locator("details.thoughts summary").first.click()
    expect(first).to_be_visible()
    page.keyboard.press("t")
    assert page.locator("details.thoughts:not([open])").count() == 0
    page.keyboard.press("ArrowRight")
    assert page.locator("details.thoughts:not([open])").count() == 0  # the next problem's too
    page.click("text=Collapse all thoughts")
    assert page.locator("details.thoughts[open]").count() == 0


def test_arrow_keys_move_through_the_problems(page):
    reader(page)
    for key, number in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("ArrowUp", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        assert query(page) == f"which day is {number} ?"
    expect(page.locator("#list [aria-current]")).to_contain_text("which day is 0 ?")
    page.locator("#list button >> nth=199").click()
    page.keyboard.press("ArrowDown")  # beyond the end of the list, which grows
    assert query(page) == "which day is 200 ?"
    expect(page.locator("#list [aria-current]")).to_be_visible()


def test_the_list_shows_more_when_asked(page):
    reader(page)
    assert page.locator("#list button[data-place]").count() == 200
    page.click("text=show more")
    assert page.locator("#list button[data-place]").count() == 400


def test_search_finds_words_of_answers(page):
    reader(page)
    page.keyboard.press("/")
    page.keyboard.type("Needle in")
    expect(page.locator("#found")).to_contain_text(f"1 of {PROBLEMS}")
    assert query(page) == "which day is 440 ?"
    expect(page.locator("details[open]", has_text="needle")).to_be_visible()  # although thoughts are collapsed
    assert page.locator("details[open]").count() == 1
    page.keyboard.press("ArrowLeft")  # moves the cursor in the search box, not the problem
    page.fill("#search", "no such words")
    expect(page.locator("#found")).to_contain_text(f"0 of {PROBLEMS}")
    expect(page.locator("#facts")).to_contain_text("No matches.")
    page.fill("#search", "")
    expect(page.locator("#found")).to_contain_text(f"{PROBLEMS} of {PROBLEMS}")


def test_problems_are_filtered_by_topic_and_outcome(page):
    reader(page)
    page.select_option("#topic", "months")
    expect(page.locator("#found")).to_contain_text(f"{PROBLEMS // 3} of {PROBLEMS}")
    assert query(page) == "which day is 1 ?"
    page.select_option("#outcome", label="sft: malformed (1)")
    expect(page.locator("#found")).to_contain_text(f"1 of {PROBLEMS}")
    assert page.locator(".mark.warn").all_inner_texts() == ["unclosed_thoughts"] * 3
    page.select_option("#topic", "days")
    expect(page.locator("#found")).to_contain_text(f"0 of {PROBLEMS}")


def test_training_samples_are_shown_with_their_scores(page):
    reader(page)
    page.select_option("#set", "training samples, online-1")
    expect(page.locator("#found")).to_contain_text("4 of 4")
    marks = page.locator("#answers .marks").all_inner_texts()
    assert [text.split("\n") for text in marks] == [
        ["reward 0.50", "format +1", "chosen"],
        ["reward -0.50", "format +1", "rejected"],
    ]
    page.select_option("#outcome", label="not used (1)")
    assert query(page) == "online query 3"


def test_model_text_is_shown_verbatim_and_does_nothing(page):
    reader(page)
    page.keyboard.press("t")
    shown = page.locator("#answers .text").all_text_contents()
    assert shown.count(HOSTILE) == 4  # thoughts and solution of two answers
    assert page.locator("#reader img, #reader svg, #reader a, #reader script").count() == 0
    page.locator("#answers .text", has_text="markdown").first.click()
    page.wait_for_timeout(200)  # long enough for an image to fail to load


def test_only_the_projects_script_can_run(browser, report):
    """Even injected markup would do nothing: the browser itself refuses it."""
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(report.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert len([text for text in refused if "Content Security Policy" in text]) >= 2
    page.close()


class LongRun(MadeRun):
    """Answers of 6,000 characters, thoughts included; one of them contains a needle."""

    def response(
        self, query_id: str, sample: int, solution: str, thoughts: str | None, **changes: Any
    ) -> dict[str, Any]:
        needle = "a needle in the hay " if thoughts == "plan of sft for 1600 ." and sample else ""
        words = needle + " ".join(f"step {n} of {query_id}" for n in range(400))
        size = 3_000 if thoughts else 6_000
        thoughts = thoughts and f"{thoughts} {words}"[:size]
        return super().response(query_id, sample, f"{solution} {words}"[:size], thoughts, **changes)


@pytest.mark.faults
def test_twenty_thousand_long_answers_open(browser: Browser, tmp_path: Path):
    """Prints size and time; checks that the page opens, searches and steps without a message on the console."""
    problems = 1_667  # x 4 stages x (2 sampled + 1 greedy)
    store = Store.open(Settings(store=str(tmp_path / "store")))
    run = LongRun(store, problems)
    path = tmp_path / "report.html"
    with path.open("wb") as out:
        write_page(out.write, run.summary, bolt_content(store, run.summary, max_answers=30_000))
    troubles: list[Any] = []
    shown = browser.new_page()
    shown.on("console", lambda message: troubles.append(message.text))
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    began = time.monotonic()
    shown.goto(path.as_uri())
    shown.click("nav >> text=Reader")
    expect(shown.locator("#found")).to_contain_text("1,667 of 1,667", timeout=60_000)
    opened = time.monotonic() - began
    shown.keyboard.press("ArrowRight")
    expect(shown.locator("#query")).to_contain_text("which day is 1 ?")
    shown.fill("#search", "a needle in the hay")
    expect(shown.locator("#found")).to_contain_text("1 of 1,667", timeout=60_000)
    expect(shown.locator("#query")).to_contain_text("which day is 1600 ?")
    print(
        f"{path.stat().st_size / 1e6:.0f} MB, opened in {opened:.1f} s, searched after {time.monotonic() - began:.1f} s"
    )
    assert not troubles
    shown.close()
