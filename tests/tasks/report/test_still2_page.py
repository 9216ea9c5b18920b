"""The report of a run of `still2`, made from real tables in a local store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_run import MadeRun

from infra.settings import Settings
from infra.store.parts import find
from infra.store.schemas import EXPLORED, LONGCOT, PAIRS, QUERIES
from infra.store.store import Store
from tasks.report.report import write_page
from tasks.report.still2_page import rollout_items, still2_content

HOSTILE = "</script><script>window.hacked = 1</script> {{ 7 * 7 }}"
LENGTHS = {"days $x_{$": {"imitated": [3.0, 4.0, 9.0], "right": [2.0, 4.0, 8.0], "picked": [3.0, 4.0, 8.0]}}


def explored_run(store: Store, learned: str) -> dict[str, Any]:
    """The summary of a run with two rounds of two problems and a third; the second round has nothing to learn from."""
    run = MadeRun(store)
    run.table("to-explore", QUERIES, [run.query(f"h{n}", f"hard {n} ?", "days") for n in range(3)])
    texts = {"thoughts": HOSTILE, "solution": "answer : sun .", "thought_tokens": 4, "solution_tokens": 3}
    tried = [("h0", 0, False), ("h1", 0, False), ("h0", 1, True)]
    rows = [{"query_id": name, "sample": sample, "correct": right, **texts} for name, sample, right in tried]
    run.table("explored-1", EXPLORED, rows)
    run.table("explored-2", EXPLORED, [row for row in rows if row["query_id"] == "h1"])
    if learned == "picked":
        words = {"query": "q", "thoughts": "t", "solution": "s", "format": "bolt", "reward": 1.0}
        run.table("picked-1", LONGCOT, [{"query_id": "h0", "sample": 1, **words}])
    else:
        words = {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_sample": 1, "rejected_sample": 0}
        scores = {"chosen_score": 1.5, "rejected_score": 0.5, "chosen_tokens": 9, "rejected_tokens": 9, "iteration": 1}
        run.table("pairs-1", PAIRS, [{"query_id": "h0", **words, **scores}])
    run.model("sft-imitated")
    counts = {"problems": 2, "solved": 1, "rollouts": 3, "right": 1}
    rounds = [{**counts, "learned": 1, "lengths": LENGTHS}, {**counts, "solved": 0, "learned": 0, "lengths": {}}]
    read = {"read": 10, "kept": 8, "dropped: too short": 2}
    imitation = {"distilled-filtered": {**read, "sources": {"teacher.jsonl": read}, "topics": {"days": 8}}}
    return {**run.summary, "imitation": imitation, "rounds": rounds, "ended": "round 2 solved nothing", "guards": []}


@pytest.mark.parametrize("learned", ["picked", "pairs"])
def test_rounds_and_their_rollouts_are_shown(tmp_path: Path, learned: str) -> None:
    store = Store.open(Settings(store=str(tmp_path)))
    summary = explored_run(store, learned)
    content = still2_content(store, summary)
    pieces: list[bytes] = []
    write_page(pieces.append, summary, content)
    html = b"".join(pieces).decode()
    assert "<title>STILL-2: able-eagle</title>" in html
    assert "The rounds ended: round 2 solved nothing." in html
    assert html.count("<script>window") == 0
    assert 'alt="Thought tokens in round 1, by type of problem"' in html
    assert content.trainings == ["dpo-1", "sft-imitated"]
    assert [row["solved"] for row in content.tables["rounds"]] == ["1 (50.0%)", "0 (0.0%)"]
    shares = {(row["texts of"], row["counted"]): row["share"] for row in content.tables["imitation"]}
    assert shares["teacher.jsonl", "dropped: too short"] == "20.0%"
    index = json.loads(html.partition('id="index">')[2].partition("</script>")[0])
    assert [each["query"] for each in index if each["set"] == "rollouts, round 1"] == ["hard 0 ?", "hard 1 ?"]
    assert [each["outcomes"] for each in index if each["set"] == "rollouts, round 2"] == [[["", "not solved"]]]


def test_a_rollout_shows_whether_it_is_right_and_was_learned_from(tmp_path: Path) -> None:
    store = Store.open(Settings(store=str(tmp_path)))
    explored_run(store, "pairs")
    found = {step: find(store, step, "k") for step in ("to-explore", "explored-1", "pairs-1")}
    made = {step: [ref] for step, ref in found.items() if ref}
    first, second = rollout_items(store, made, 1, max_queries=2)
    assert [each["marks"] for each in first["rows"][0]["answers"]] == [
        [("bad", "wrong"), ("good", "learned from")],
        [("good", "right"), ("good", "learned from")],
    ]
    assert [each["marks"] for each in second["rows"][0]["answers"]] == [[("bad", "wrong")]]
    assert first["rows"][0]["answers"][0]["thoughts"] == HOSTILE
    assert len(list(rollout_items(store, made, 1, max_queries=1))) == 1
