"""What the report of a run of `still2` shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from infra.store.store import Store
from infra.store.tables import read_rows
from tasks.report import report
from tasks.report.reader import card
from tasks.report.report import Content, Made, Rows, common_content
from tasks.report.rounds import lengths_plot, round_rows

CAPTIONS = {
    "imitation": "Texts of another model: what each step kept and dropped",
    "rounds": "What each round explored. Learned from: rollouts picked in this round, or pairs of all rounds so far",
}
PICKED = ("good", "learned from")


def still2_content(
    store: Store, summary: Mapping[str, Any], max_answers: int = 20_000, max_queries: int = 100
) -> Content:
    """What the report of a run shows.

    Args:
        summary: a run's summary.json.
        max_answers: most held-out answers in the reader, of all stages together; the first problems are shown.
        max_queries: most problems of each round in the reader.

    Raises:
        BadArtifact: an artifact of the run is missing or damaged.
    """
    made = report.made_by(store, summary)
    found = report.manifests(store, made)
    trained = [step for step in found if step.startswith(("sft-", "dpo-"))]
    given = {"title": "STILL-2", "template": "still2.html"}
    content = common_content(store, summary, made, found, trained=trained, max_answers=max_answers, **given)
    content.tables.update(imitation=imitation_rows(summary["imitation"]), rounds=[*round_rows(summary["rounds"])])
    content.captions.update(CAPTIONS)
    for number, each in enumerate(summary["rounds"], 1):
        if each["lengths"]:
            content.plots[f"lengths-{number}"] = lengths_plot(each["lengths"])
            content.titles[f"lengths-{number}"] = f"Thought tokens in round {number}, by type of problem"
        content.sets[f"rollouts, round {number}"] = rollout_items(store, made, number, max_queries)
    return content


def imitation_rows(imitation: Mapping[str, Mapping[str, Any]]) -> Rows:
    """The table of counts of each step of imitation; shares are relative to the texts that the step read."""
    rows: Rows = []
    for step, counts in imitation.items():
        for source, own in {"all": counts, **counts.get("sources", {})}.items():
            for name, count in own.items():
                if isinstance(count, int):
                    share = f"{count / own['read']:.1%}" if own.get("read") else ""
                    rows.append({"step": step, "texts of": source, "counted": name, "rows": count, "share": share})
    return rows


def rollout_items(store: Store, made: Made, number: int, max_queries: int) -> Iterator[dict[str, Any]]:
    """The first problems of a round, each with its well-formed rollouts: right or wrong, and which became training
    data."""
    (problems,), (explored,) = made["to-explore"], made[f"explored-{number}"]
    order = dict.fromkeys(row["query_id"] for row in read_rows(store, explored, ["query_id"]))
    first = set(islice(order, max_queries))
    asked = {row["query_id"]: row for row in read_rows(store, problems) if row["query_id"] in first}
    learned = learned_from(store, made, number)
    rollouts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(store, explored):
        if row["query_id"] in first:
            rollouts[row["query_id"]].append(row)
    for query_id in islice(order, max_queries):
        tried, query = rollouts.pop(query_id), asked[query_id]
        answers = []
        for row in tried:
            marks = [("good", "right") if row["correct"] else ("bad", "wrong")]
            marks += [PICKED] if (query_id, row["sample"]) in learned else []
            answers.append(card({**row, "text": None, "violations": [], "finish_reason": "stop"}, marks))
        right = sum(row["correct"] for row in tried)
        yield {
            "query": query["query"],
            "topic": query["topic"],
            "reference": query["reference"],
            "columns": [f"rollout {row['sample']}" for row in tried],
            "rows": [{"name": "", "answers": answers}],
            "outcomes": [("", "solved" if right else "not solved")],
            "shares": [],
        }


def learned_from(store: Store, made: Made, number: int) -> set[tuple[str, int]]:
    """The rollouts of a round that were learned from, as (query, sample); none of a last round without a model.

    A problem with a pair has been solved, and is not explored again: its pair is of this round.
    """
    if f"pairs-{number}" in made:
        (pairs,) = made[f"pairs-{number}"]
        columns = ["query_id", "chosen_sample", "rejected_sample"]
        rows = list(read_rows(store, pairs, columns))
        return {(row["query_id"], row[name]) for row in rows for name in columns[1:]}
    tables = made.get(f"picked-{number}", [])
    return {(row["query_id"], row["sample"]) for each in tables for row in read_rows(store, each)}
