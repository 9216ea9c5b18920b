"""What the report of a run of `still1` shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from infra.store.manifest import expect
from infra.store.store import Store
from infra.store.tables import read_rows
from tasks.report import report
from tasks.report.mutual import calibration_plot, judged_by_topic_rows, mutual_rows
from tasks.report.reader import card, faults, rows_of
from tasks.report.report import Content, Made, Rows, common_content
from tasks.report.searches import search_rows, tokens_plot

CAPTIONS = {
    "adaptation": "Solutions that the policy was first fine-tuned on, and why others were dropped",
    "rounds": "Each round: the reward model on held-out questions, and the policy's accuracy there",
    "judged-by-topic": "AUROC of each round's reward model on held-out questions, by topic",
    "searches": "Search with each policy, guided by the last reward model; means per problem",
}


def still1_content(
    store: Store, summary: Mapping[str, Any], max_answers: int = 20_000, max_queries: int = 100
) -> Content:
    """What the report of a run shows.

    Args:
        summary: a run's summary.json.
        max_answers: most held-out answers in the reader, of all stages together; the first problems are shown.
        max_queries: most questions of each round in the reader.

    Raises:
        BadArtifact: an artifact of the run is missing or damaged.
    """
    made = report.made_by(store, summary)
    found = report.manifests(store, made)
    trained = [step for step in found if step.startswith(("sft-", "dpo-"))]
    given = {"title": "STILL-1", "template": "still1.html"}
    content = common_content(store, summary, made, found, trained=trained, max_answers=max_answers, **given)
    counted = summary["adaptation"]
    content.tables["adaptation"] = [
        {"counted": name, "rows": rows, "share": f"{rows / counted['read']:.1%}"} for name, rows in counted.items()
    ]
    content.tables["rounds"] = [*mutual_rows(summary["rounds"])]
    content.captions.update(CAPTIONS)
    content.tables["judged-by-topic"] = [*judged_by_topic_rows(summary["rounds"])]
    content.tables["searches"] = [*search_rows(summary["searches"])]
    if summary["searches"] and summary["searches"][0]["accuracy"] is not None:
        content.plots["searches"] = tokens_plot(summary["searches"])
        content.titles["searches"] = "Accuracy against the tokens sampled per problem, by policy and search"
    numbers = range(1, len(summary["rounds"]) + 1)
    if numbers:
        measured = {f"round {n}": list(read_rows(store, made[f"calibration-{n}"][0])) for n in numbers}
        content.plots["calibration"] = calibration_plot(measured)
        content.titles["calibration"] = "Share of right held-out solutions by the reward model's probability"
    for number in numbers:
        content.sets[f"samples, round {number}"] = sample_items(store, made, number, max_queries)
    return content


def sample_items(store: Store, made: Made, number: int, max_queries: int) -> Iterator[dict[str, Any]]:
    """The first questions of a round, each with its samples: right or wrong, the probability that the reward model
    gives them, and which became a preference pair. Samples are in order of probability, highest first."""
    (queries,), (judged,), (pairs,) = (made[f"{step}-{number}"] for step in ("queries-round", "judged", "pairs"))
    first = {row["query_id"]: row for row in islice(read_rows(store, queries), max_queries)}
    known = {(row["query_id"], row["sample"]): row for row in read_rows(store, judged) if row["query_id"] in first}
    used: dict[tuple[str, int], tuple[str, str]] = {}
    searched = any(name.startswith("searched") for name in expect(store, pairs).inputs)  # then no samples are paired
    for row in () if searched else read_rows(store, pairs, ["query_id", "chosen_sample", "rejected_sample"]):
        used[row["query_id"], row["chosen_sample"]] = ("good", "chosen")
        used[row["query_id"], row["rejected_sample"]] = ("bad", "rejected")
    samples: dict[str, Rows] = defaultdict(list)
    for row in rows_of(store, made[f"responses-round-{number}"], first):
        samples[row["query_id"]].append(row)

    def likely(row: Mapping[str, Any]) -> float:
        found = known.get((row["query_id"], row["sample"]), {}).get("probability")
        return 1.0 if found is None else -found

    for query_id, query in first.items():
        own = sorted(samples.pop(query_id, []), key=likely)
        answers = []
        for row in own:
            found = known.get((query_id, row["sample"]))
            marks = [("plain", "not judged")]
            if found is not None:
                marks = [("good", "right") if found["right"] else ("bad", "wrong")]
                marks += [("plain", f"p = {found['probability']:.2f}")] if found["probability"] is not None else []
            answers.append(
                card(row, [*marks, *([used[query_id, row["sample"]]] if (query_id, row["sample"]) in used else [])])
            )
        paired = any((query_id, row["sample"]) in used for row in own)
        use = "pairs are of trees" if searched else "gave a pair" if paired else "not used"
        yield {
            "query": query["query"],
            "topic": query["topic"],
            "reference": query["reference"],
            "columns": [f"sample {row['sample']}" for row in own],
            "rows": [{"name": "", "answers": answers}],
            "outcomes": [("", each) for each in [use, *faults(own)]],
            "shares": [],
        }
