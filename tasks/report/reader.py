"""What the report's reader shows: one problem's answers from all stages, or one query's samples with their scores.

An *item* is one problem or query: named columns, and rows of answers in them. Items are made set by set and written in
slices, so that the page parses only the slice that it shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile, zip_longest
from typing import Any, TypeAlias

from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import read_rows, scan
from tasks.evaluation.problems import Verifiable, step_of, topic_of

Row: TypeAlias = dict[str, Any]
Sample: TypeAlias = tuple[str, int]

DECODINGS = ("greedy", "sampled")
TRAINED_ON = "trained on"  # by a policy gradient
SHOWN = ["query_id", "sample", "text", "thoughts", "solution", "violations", "finish_reason"]
SHOWN += ["thought_tokens", "solution_tokens"]
USES = {"LongCoT data": "became LongCoT data", "chosen": "gave a pair", TRAINED_ON: TRAINED_ON}
"""The outcome of a query that has a sample with such a mark."""
QUARANTINED = {"thoughts": None, "solution": None, "raw": None, "tokens": [0, 0], "marks": [("warn", "quarantined")]}
"""Stands in for the missing answer of a request that was quarantined."""
SLICE_ANSWERS = 250


def card(response: Row, marks: Sequence[tuple[str, str]]) -> Row:
    """One answer as the page shows it: its texts, lengths in tokens, and `marks` (kind, words) such as its grade."""
    warnings = [("warn", "truncated")] if response["finish_reason"] != "stop" else []
    warnings += [("warn", name) for name in response["violations"]]
    return {
        "thoughts": response["thoughts"],
        "solution": response["solution"],
        "raw": response["text"] if response["violations"] else None,
        "tokens": [response["thought_tokens"], response["solution_tokens"]],
        "marks": [*marks, *warnings],
    }


def faults(responses: Iterable[Row]) -> list[str]:
    """The faults that occur in any of the responses."""
    held = list(responses)
    found = ["malformed"] if any(row["violations"] for row in held) else []
    return found + (["truncated"] if any(row["finish_reason"] != "stop" for row in held) else [])


def rows_of(store: Store, shards: Sequence[Ref], wanted: Mapping[str, Any]) -> Iterator[Row]:
    """The responses to the queries `wanted`, which must be the first ones: each shard is read only that far."""
    for shard in shards:
        stream = (row for batch in scan(store, shard, SHOWN, batch_rows=100) for row in batch.to_pylist())
        yield from takewhile(lambda row: row["query_id"] in wanted, stream)


def held_out_items(
    store: Store, made: Mapping[str, Sequence[Ref]], benchmark: Verifiable, stages: Sequence[str], max_answers: int
) -> Iterator[Row]:
    """The first problems, each with the answers of all stages; as many as `max_answers` allows.

    Only the answers shown are held in memory.
    """
    (problems,) = made[step_of("problems", benchmark)]
    tables = {(stage, how): made[step_of("answers", benchmark, stage, how)] for stage in stages for how in DECODINGS}
    answers = sum(ref.rows for shards in tables.values() for ref in shards)
    shown = problems.rows if answers <= max_answers else problems.rows * max_answers // answers
    first = {row["query_id"]: row for row in islice(read_rows(store, problems), shown)}
    found: dict[str, dict[tuple[str, str], list[tuple[Row, Row]]]] = {each: defaultdict(list) for each in first}
    for (stage, how), shards in tables.items():
        (graded,) = made[step_of("grades", benchmark, stage, how)]
        grades = {
            (row["problem_id"], row["sample"]): row
            for row in read_rows(store, graded, ["problem_id", "sample", "prediction", "correct"])
            if row["problem_id"] in first
        }
        for row in rows_of(store, shards, first):
            found[row["query_id"]][stage, how].append((row, grades[row["query_id"], row["sample"]]))
    for query_id, problem in first.items():
        yield {
            "query": problem["query"],
            "topic": topic_of(problem),
            "reference": problem["reference"],
            "columns": list(stages),
            **side_by_side(stages, found.pop(query_id)),
        }


def side_by_side(stages: Sequence[str], found: Mapping[tuple[str, str], list[tuple[Row, Row]]]) -> Row:
    """A problem's answers in rows (greedy, then each sample), its outcomes as (stage, outcome), its shares by stage."""
    outcomes: list[tuple[str, str]] = []
    shares: list[float | None] = []
    before: float | None = None
    for stage in stages:
        sampled = found[stage, "sampled"]
        if not sampled:
            outcomes.append((stage, "quarantined"))
            shares.append(None)
            continue
        share = sum(grade["correct"] for _, grade in sampled) / len(sampled)
        outcomes.append((stage, "all correct" if share == 1 else "some correct" if share else "none correct"))
        if before is not None and share != before:
            outcomes.append(
                (stage, "better than the stage before" if share > before else "worse than the stage before")
            )
        outcomes += [(stage, fault) for fault in faults(row for row, _ in sampled)]
        shares.append(share)
        before = share
    rows = []
    for how in DECODINGS:
        for number, across in enumerate(zip_longest(*(found[stage, how] for stage in stages))):
            name = how if how == "greedy" else f"sample {number}"
            answers = [card(each[0], [verdict(each[1])]) if each else QUARANTINED for each in across]
            rows.append({"name": name, "answers": answers})
    return {"rows": rows, "outcomes": outcomes, "shares": shares}


def verdict(grade: Row) -> tuple[str, str]:
    """A grade as a mark."""
    if grade["correct"]:
        return "good", f"correct: {grade['prediction']}"
    return "bad", "wrong: no answer found" if grade["prediction"] is None else f"wrong: {grade['prediction']}"


def training_items(store: Store, made: Mapping[str, Sequence[Ref]], step: str, max_queries: int) -> Iterator[Row]:
    """The first queries of `step` ("responses", "responses-online-2"), each with its samples and their use in training.

    Samples are in order of reward, highest first.
    """
    source = step.removeprefix("responses")
    (queries,), (scores,) = made[f"queries{source}"], made[f"scores{source}"]
    first = {row["query_id"]: row for row in islice(read_rows(store, queries), max_queries)}
    uses = training_marks(store, made, source)
    columns = ["query_id", "sample", "reward", "format_reward"]
    scored = {
        (row["query_id"], row["sample"]): row for row in read_rows(store, scores, columns) if row["query_id"] in first
    }
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows_of(store, made[step], first):
        found[row["query_id"]].append(row)
    for query_id, query in first.items():
        samples = sorted(found.pop(query_id, []), key=lambda row: rank(scored.get((row["query_id"], row["sample"]))))
        marks = [
            [*score_marks(scored.get(sample)), *([uses[sample]] if sample in uses else [])]
            for sample in ((query_id, row["sample"]) for row in samples)
        ]
        known = {words for each in marks for _, words in each}
        unused = "not used" if samples else "quarantined"
        outcome = next((outcome for words, outcome in USES.items() if words in known), unused)
        answers = [card(row, each) for row, each in zip(samples, marks, strict=True)]
        yield {
            "query": query["query"],
            "topic": query["topic"],
            "reference": query["reference"],
            "columns": [f"sample {row['sample']}" for row in samples],
            "rows": [{"name": "", "answers": answers}],
            "outcomes": [("", each) for each in [outcome, *faults(samples)]],
            "shares": [],
        }


def training_marks(store: Store, made: Mapping[str, Sequence[Ref]], source: str) -> dict[Sample, tuple[str, str]]:
    """The marks of the samples that were trained on, as LongCoT data (stage 1), in a pair or by themselves."""
    if not source:
        (longcot,) = made["longcot"]
        kept = read_rows(store, longcot, ["query_id", "sample"])
        return {(row["query_id"], row["sample"]): ("good", "LongCoT data") for row in kept}
    iteration = source.rpartition("-")[2]
    if f"samples-{iteration}" in made:
        (samples,) = made[f"samples-{iteration}"]
        trained = read_rows(store, samples, ["query_id", "sample"])
        return {(row["query_id"], row["sample"]): ("good", TRAINED_ON) for row in trained}
    (pairs,) = made[f"pairs-{iteration}"]
    marks: dict[Sample, tuple[str, str]] = {}
    for row in read_rows(store, pairs, ["query_id", "chosen_sample", "rejected_sample"]):
        marks[row["query_id"], row["chosen_sample"]] = ("good", "chosen")
        marks[row["query_id"], row["rejected_sample"]] = ("bad", "rejected")
    return marks


def rank(score: Row | None) -> float:
    """The sort key of a sample: highest reward first, samples without a score last."""
    return float("inf") if score is None else -float(score["reward"])


def score_marks(score: Row | None) -> list[tuple[str, str]]:
    """A score as marks: the reward, and what being well-formed added."""
    if score is None:
        return [("plain", "no score")]
    return [("plain", f"reward {score['reward']:.2f}"), ("plain", f"format +{score['format_reward']:g}")]


def sliced(items: Iterable[Row]) -> Iterator[list[Row]]:
    """The items in slices of about `SLICE_ANSWERS` answers each."""
    held: list[Row] = []
    answers = 0
    for item in items:
        held.append(item)
        answers += sum(len(row["answers"]) for row in item["rows"])
        if answers >= SLICE_ANSWERS:
            yield held
            held, answers = [], 0
    if held:
        yield held
