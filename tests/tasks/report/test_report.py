"""The report's figures and its page, made from real tables of a run in a local store."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import SAMPLES, STAGES, MadeRun

from infra.settings import Settings
from infra.store.manifest import BadArtifact
from infra.store.store import Store
from tasks.report import report
from tasks.report.bolt_page import bolt_content, funnel_rows
from tasks.rewards.group import NO_SIGNAL

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'><!--<script> ]]> & &lt; "
    '[link](javascript:window.hacked=1) {{ 7 * 7 }} \u2028 \u202e \x00 \\u003c "quoted"'
)


class Page(HTMLParser):
    """The page's elements, and the content of its JSON blocks by id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}
        self.text, self._id = "", ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") if tag == "script" else None

    def handle_endtag(self, tag):
        self._id = None

    def handle_data(self, data):
        if self._id:
            self.data[self._id] = self.data.get(self._id, "") + data
        else:
            self.text += data


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(Settings(store=str(tmp_path / "store")))


def page_of(store: Store, run: MadeRun, **limits: int) -> Page:
    pieces: list[bytes] = []
    report.write_page(pieces.append, run.summary, bolt_content(store, run.summary, **limits))
    return Page(b"".join(pieces).decode())


def items_of(page: Page, name: str) -> list[dict]:
    """The items of a set in the reader, each with its entry in the index."""
    found = []
    for entry in json.loads(page.data["index"]):
        if entry["set"] == name:
            found.append({**entry, **json.loads(page.data[f"slice-{entry['slice']}"])[entry["place"]]})
    return found


def test_all_artifacts_of_a_run_are_found_with_all_shards(store):
    run = MadeRun(store)
    made = report.made_by(store, run.summary)
    assert {step: len(refs) for step, refs in made.items() if len(refs) > 1} == {
        f"answers-{stage}-sampled": 2 for stage in STAGES
    }
    assert set(made) == {step["name"] for step in run.summary["steps"]}


def test_a_missing_artifact_is_reported(store):
    run = MadeRun(store)
    store.delete("longcot/k/manifest.json")
    with pytest.raises(BadArtifact, match=r"longcot/k is missing"):
        page_of(store, run)


def test_the_reader_holds_all_answers_side_by_side(store):
    items = items_of(page_of(store, MadeRun(store)), "held-out problems")
    assert [item["query"] for item in items] == [f"which day is {n} ?" for n in range(6)]
    first, second = items[:2]
    assert first["columns"] == list(STAGES)
    assert [row["name"] for row in first["rows"]] == ["greedy", "sample 0", "sample 1"]
    greedy = first["rows"][0]["answers"]
    assert [answer["thoughts"] for answer in greedy] == [None, *(f"plan of {s} for 0 ." for s in STAGES[1:])]
    assert [answer["marks"][0] for answer in greedy] == [
        ["good", "correct: sun"],
        ["bad", "wrong: no answer found"],
        ["good", "correct: sun"],
        ["bad", "wrong: no answer found"],
    ]
    assert first["shares"] == [0.5] * 4
    assert ["sft", "malformed"] in second["outcomes"]
    assert ["sft", "malformed"] not in first["outcomes"]
    assert second["rows"][1]["answers"][2]["marks"][-1] == ["warn", "unclosed_thoughts"]
    assert second["rows"][1]["answers"][2]["raw"] is not None
    assert first["rows"][1]["answers"][2]["raw"] is None


def test_the_reader_shows_how_training_samples_were_used(store):
    page = page_of(store, MadeRun(store))
    items = items_of(page, "training samples, stage 1")
    assert items[0]["columns"] == ["sample 1", "sample 0"]  # by reward
    assert [each["marks"] for each in items[0]["rows"][0]["answers"]] == [
        [["plain", "reward 0.50"], ["plain", "format +1"], ["good", "LongCoT data"]],
        [["plain", "reward -0.50"], ["plain", "format +1"]],
    ]
    pairs = items_of(page, "training samples, online-1")
    assert [each["marks"][-1] for each in pairs[0]["rows"][0]["answers"]] == [["good", "chosen"], ["bad", "rejected"]]
    assert [item["outcomes"] for item in pairs] == [[["", "gave a pair"]]] * 3 + [[["", "not used"]]]


def test_a_run_by_a_policy_gradient_is_shown_like_one_by_dpo(store):
    """All samples were trained on, there are no pairs, and the curves are those that its trainer logs."""
    run = MadeRun(store, method="grpo")
    page = page_of(store, run)
    items = items_of(page, "training samples, online-1")
    assert [item["outcomes"] for item in items] == [[["", "trained on"]]] * 4
    html = []
    content = bolt_content(store, run.summary)
    report.write_page(html.append, run.summary, content)
    tables, pictures = content.tables, content.plots
    assert "grpo-1/k</code>, by iterative online GRPO." in b"".join(html).decode()
    assert {"grpo-1", "curves"} <= set(pictures)
    for words in ("KL to pi_0, nats per token", "mean reward of the samples"):
        assert words.encode() in pictures["curves"]
        assert words.encode() in pictures["grpo-1"]
    counted = {row["counted"]: row["share"] for row in tables["funnel"] if row["step"] == "samples-1"}
    assert counted == {"samples": "100.0%", "queries": "50.0%", NO_SIGNAL: "12.5%"}
    assert b"equal rewards" in pictures["funnel"]


def test_a_benchmarks_own_problems_are_shown_by_category(store):
    """Its steps have names of their own, and its problems have a category instead of a topic."""
    run = MadeRun(store, benchmark="math500")
    assert "grades-math500-sft-sampled" in {step["name"] for step in run.summary["steps"]}
    items = items_of(page_of(store, run), "held-out problems")
    assert [item["topic"] for item in items] == ["days", "months", None] * 2
    topics = report.topic_rows(store, report.made_by(store, run.summary), "math500", STAGES)
    assert topics[1] == {"topic": "days", "problems": 2, **dict.fromkeys(STAGES, "0.500")}


def test_quarantined_requests_are_shown_as_such(store):
    """A request that killed a server twice has no samples; a whole topic may have none in a stage."""
    run = MadeRun(store, quarantined={("sft", 0), ("sft", 3), ("", 1), ("-online-1", 3)})
    page = page_of(store, run)
    first, second = items_of(page, "held-out problems")[:2]
    assert first["shares"] == [0.5, 0.5, None, 0.5]
    assert ["sft", "quarantined"] in first["outcomes"]
    assert [[answer["marks"][0] for answer in row["answers"]][2] for row in first["rows"]] == [
        ["warn", "quarantined"]
    ] * 3
    assert second["shares"] == [0.5] * 4
    assert items_of(page, "training samples, stage 1")[1]["outcomes"] == [["", "quarantined"]]
    assert items_of(page, "training samples, online-1")[3]["outcomes"] == [["", "quarantined"]]
    days = report.topic_rows(store, report.made_by(store, run.summary), "short-answer", STAGES)[1]
    assert (days["topic"], days["sft"], days["online-1"]) == ("days", "", "0.500")


def test_the_reader_is_bounded(store):
    run = MadeRun(store, problems=6)
    page = page_of(store, run, max_answers=6 * len(STAGES) * (SAMPLES + 1) // 2, max_queries=2)
    assert len(items_of(page, "held-out problems")) == 3
    assert len(items_of(page, "training samples, stage 1")) == 2


def test_hostile_text_stays_text(store):
    page = page_of(store, MadeRun(store, texts={("sft", 0, 1): HOSTILE}))
    answer = items_of(page, "held-out problems")[0]["rows"][2]["answers"][2]
    assert answer["solution"] == answer["thoughts"] == HOSTILE
    assert HOSTILE in answer["marks"][0][1]
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [each for each in scripts if each.get("type") != "application/json"] == [{}]  # the page's own, the last
    assert not [tag for tag, attributes in page.tags if tag == "img" and not attributes["src"].startswith("data:")]
    assert all(text.isascii() and "<" not in text for text in page.data.values())


def test_hostile_names_are_escaped_in_tables(store):
    run = MadeRun(store)
    run.summary["model"] = run.summary["gains"][0]["from"] = HOSTILE.replace("\x00", "")
    page = page_of(store, run)
    assert [attributes for tag, attributes in page.tags if tag == "script" and "type" not in attributes] == [{}]
    assert page.text.count("window.hacked = 1</script>") == 2


def test_only_the_projects_own_script_and_style_are_allowed(store):
    page = page_of(store, MadeRun(store))
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert len(re.findall(r"'sha256-[\w+/]{43}='", policy)) == 2
    assert not [tag for tag, attributes in page.tags if {"style", "onclick", "onload", "onerror"} & attributes.keys()]


def test_figures_come_from_the_manifests(store):
    run = MadeRun(store)
    made = report.made_by(store, run.summary)
    found = report.manifests(store, made)
    funnel = funnel_rows(found)
    assert funnel[0] == {"step": "filtered", "counted": "read", "rows": 10, "share": "100.0%"}
    assert {"step": "pairs-1", "counted": "dropped: equal scores", "rows": 1, "share": "25.0%"} in funnel
    topics = report.topic_rows(store, made, "short-answer", STAGES)
    assert topics[0] == {"topic": "(none)", "problems": 2, **dict.fromkeys(STAGES, "0.500")}
    assert [row["topic"] for row in topics] == ["(none)", "days", "months"]
    steps = {row["step"]: row for row in report.step_rows(run.summary, found, {"dpo-1": 4.0})}
    assert (steps["dpo-1"]["tokens"], steps["dpo-1"]["tokens/s"]) == (1200, 300)
    assert (steps["answers-sft-sampled"]["shards"], steps["answers-sft-sampled"]["tokens"]) == (2, 18)
    assert steps["grades-sft-sampled"]["seconds to make"] == ""


def test_a_cached_step_is_timed_by_the_run_that_made_it(store, caplog):
    run = MadeRun(store)
    again = {**run.summary, "run": "busy-bee"}
    again["steps"] = [{**step, "cached": True, "seconds": 0.01} for step in run.summary["steps"]]
    assert set(report.making_seconds(store, again).values()) == {1.5}
    for content in (b"", b'{"steps": [', b"{}", b"[1]", b'{"steps": ["scores"]}', b"\xff"):
        store.write_bytes("runs/aaa/summary.json", content)
        caplog.clear()
        assert set(report.making_seconds(store, again).values()) == {1.5}
        assert [each.getMessage().split(" is ")[0] for each in caplog.records] == [store.uri("runs/aaa/summary.json")]
    store.delete("runs/aaa/summary.json")
    store.delete("runs/able-eagle/summary.json")
    assert report.making_seconds(store, again) == {}


def test_iterations_are_sorted_by_number():
    assert report.numbered(["dpo-10", "dpo-2", "dpo-x", "dp-1"], "dpo-") == ["dpo-2", "dpo-10"]


def test_twenty_thousand_answers(store, tmp_path, capsys):
    """4 stages x (2 sampled + 1 greedy) x 1,667 problems. Prints size and time, and checks that all are in the page."""
    run = MadeRun(store, problems=1_667)
    path = tmp_path / "report.html"
    began = time.perf_counter()
    with path.open("wb") as out:
        report.write_page(out.write, run.summary, bolt_content(store, run.summary, max_answers=30_000))
    with capsys.disabled():
        size = path.stat().st_size / 1e6
        print(f"\n20,004 answers: {size:.1f} MB in {time.perf_counter() - began:.1f} s")
    page = Page(path.read_text())
    index = json.loads(page.data["index"])
    assert sum(entry["set"] == "held-out problems" for entry in index) == 1_667
    assert max(entry["slice"] for entry in index) + 1 == len(page.data) - 1 > 60
