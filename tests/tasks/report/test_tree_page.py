"""The page of search trees in a headless Chromium: model text does nothing, and a large tree is shown at once."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tasks.report.tree_page import MAX_NODES, tree_of, tree_page

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> <!--"


def node(number: int, parent: int | None, text: str, **given: Any) -> dict[str, Any]:
    plain = {"tokens": 3, "visits": 1, "value": 0.5, "solution": False, "reward": None, "answer": None}
    return {"query_id": "a", "node": number, "parent": parent, "text": text, **plain, **given}


def solution(number: int, parent: int, answer: str, reward: float, **given: Any) -> dict[str, Any]:
    own = {"solution": True, "answer": answer, "reward": reward, "value": reward}
    return node(number, parent, f" answer : {answer} .", **own, **given)


ROWS = [
    node(0, None, "", visits=4, value=0.55),
    node(1, 0, " 2 + 3 = 5 .", visits=2, value=0.85),
    node(2, 0, f" {HOSTILE} .", visits=2, value=0.25),
    node(3, 1, " 5 + 1 = 6 .", visits=1, value=0.9),
    node(4, 1, " 5 + 1 = 7 .", visits=1, value=0.8),
    solution(5, 3, "6", 0.9),
    solution(6, 4, "7", 0.8),
    solution(7, 2, "9", 0.3),
    solution(8, 2, HOSTILE, 0.2),
]
PROBLEM = {"query_id": "a", "query": f"what is 2 + 3 + 1 ? {HOSTILE}", "reference": "6"}


def grade(text: str, reference: str) -> bool:
    return f"answer : {reference} ." in text


def written(folder: Path, *trees: dict[str, Any]) -> Path:
    path = folder / "trees.html"
    page = tree_page("brave-run", trees)
    assert page is not None
    path.write_bytes(page)
    return path


@pytest.fixture
def page(browser: Browser, tmp_path: Path):
    """The open page. A test must end without errors, scripts run by model text, or network requests."""
    other = {**tree_of("beam", {**PROBLEM, "reference": None}, ROWS, "best", grade)}
    small = tree_of("mctsg", {**PROBLEM, "query_id": "b", "query": "nothing"}, ROWS[:1], "best", grade)
    path = written(tmp_path, tree_of("mctsg", PROBLEM, ROWS, "best", grade), small, other)
    shown = browser.new_page(viewport={"width": 1200, "height": 800})
    troubles: list[Any] = []
    shown.on("console", lambda message: troubles.append(message.text))
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    shown.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
    shown.goto(path.as_uri())
    yield shown
    assert shown.evaluate("window.hacked") is None
    assert not troubles
    shown.close()


def steps(page: Page) -> list[str]:
    return page.locator("#path li").all_inner_texts()


def test_the_best_path_and_the_wrong_turns_are_shown(page):
    expect(page.locator("#found")).to_have_text("4 steps, 4 solutions, 1 of them right, 3 tokens")
    assert page.locator("svg .node").count() == len(ROWS)
    assert page.locator("path.best").count() == 3
    assert page.locator("path.wrong-turn").count() == 2  # to nodes 2 and 4
    assert page.locator(".node.right").count() == 1
    assert page.locator(".node.wrong").count() == 3
    assert [text.split("\n")[0] for text in steps(page)] == ["2 + 3 = 5 .", "5 + 1 = 6 .", "answer : 6 ."]
    assert "answer 6, right, reward 0.900, chosen" in steps(page)[-1]


def test_a_click_or_an_arrow_key_selects_a_step(page):
    page.locator(".node[data-at='4'] circle").click()
    assert steps(page)[-1].startswith("5 + 1 = 7 .\n")
    assert "wrong turn" in steps(page)[-1]
    page.locator("#drawing").press("ArrowUp")
    assert steps(page)[-1].startswith("5 + 1 = 6 .\n")
    page.locator("#drawing").press("ArrowLeft")
    page.locator("#drawing").press("ArrowDown")
    assert HOSTILE in page.locator("#path .text").last.text_content()
    page.locator("#drawing").press(" ")
    assert page.locator("svg .node").count() == len(ROWS) - 2
    page.click("text=Expand")
    assert page.locator("svg .node").count() == len(ROWS)


def test_searches_and_problems_are_chosen_by_name(page):
    assert page.locator("#problem option").count() == 2
    page.select_option("#problem", "b")
    expect(page.locator("#found")).to_have_text("0 steps, 0 solutions, 3 tokens")
    page.select_option("#search", "beam, best")
    expect(page.locator("#query")).to_have_text(PROBLEM["query"])
    assert page.locator(".node.right, .node.wrong, path.wrong-turn").count() == 0  # no reference
    assert page.locator("#facts").inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, scheme):
    """Contrast of text against its ground is at least 4.5 (WCAG AA)."""
    page.emulate_media(color_scheme=scheme)
    luminance = """(where) => {
        const own = getComputedStyle(document.querySelector(where));
        const channels = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
        const ground = getComputedStyle(document.querySelector(where).closest("aside") ?? document.documentElement);
        return [light(channels(own.color)), light(channels(ground.backgroundColor))];
    }"""
    for where in ("h1", "h1 span", "#query", "#key", "#key .bad", "ol small"):
        light, dark = sorted(page.evaluate(luminance, where), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, where


def test_a_tree_of_two_thousand_nodes_is_drawn(browser, tmp_path):
    """Prints how long it took."""
    rng = random.Random(1)
    rows = [node(0, None, "")]
    rows += [node(n, rng.randrange(max(0, n - 300), n), f" step {n} of the tree .") for n in range(1, 1500)]
    rows += [solution(n, rng.randrange(1, 1500), str(rng.randrange(9)), rng.random()) for n in range(1500, 2000)]
    path = written(tmp_path, tree_of("mctsg", PROBLEM, rows, "best", grade))
    page = browser.new_page()
    began = time.monotonic()
    page.goto(path.as_uri())
    expect(page.locator("#found")).to_contain_text("1499 steps, 500 solutions")
    assert page.locator("svg .node").count() == 2000
    print(f"2,000 nodes after {time.monotonic() - began:.2f} s")
    page.close()


def test_trees_too_large_for_a_browser_are_left_out():
    small = tree_of("mctsg", PROBLEM, ROWS, "best", grade)
    big = {**small, "nodes": [[]] * (MAX_NODES + 1)}
    assert tree_page("run", [big]) is None
    both = tree_page("run", [big, small])
    assert both is not None
    assert both.count(b'id="tree-') == 1


def test_a_solution_that_was_not_scored_is_told_from_one_without_reward():
    rows = [*ROWS[:5], {**ROWS[5], "reward": None}, {**ROWS[6], "reward": 0.0}]
    shown = tree_of("mctsg", PROBLEM, rows, "best", grade)["nodes"]
    assert [node[4] for node in shown[-2:]] == [None, 0.0]
    assert tree_of("sampling", PROBLEM, [{**ROWS[0], "visits": 0}], "majority", grade)["nodes"][0][4] is None
