"""The pick of right rollouts: lengths follow those of the imitated thoughts."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.store.schemas import DISTILLED, EXPLORED, LONGCOT, PERPLEXITIES, QUERIES
from tasks.exploration.pick import PickConfig, pick, pick_explored, quantiles, targets

ROLLOUTS = {
    "a": [{"query_id": "a", "sample": n, "thought_tokens": length} for n, length in enumerate((10, 20, 30))],
    "b": [{"query_id": "b", "sample": n, "thought_tokens": length} for n, length in enumerate((12, 40))],
}
TYPES = dict.fromkeys(ROLLOUTS, "math")


def lengths_of(config: PickConfig, lengths: dict[str, list[int]]) -> dict[str, int]:
    return {row["query_id"]: row["thought_tokens"] for row in pick(ROLLOUTS, TYPES, lengths, config)}


def test_targets_are_quantiles_in_the_middle_of_equal_parts() -> None:
    assert targets([10, 20, 30, 40], 2) == [17.5, 32.5]
    assert targets([5], 3) == [5, 5, 5]


def test_the_lengths_picked_follow_those_of_the_same_type() -> None:
    by = PickConfig()
    assert lengths_of(by, {"math": [20, 40], "code": [9000]}) == {"a": 20, "b": 40}  # targets: 25 and 35
    assert lengths_of(by, {"math": [10, 12]}) == {"a": 10, "b": 12}
    assert lengths_of(by, {"code": [10, 12]}) == {"a": 10, "b": 12}  # a type without imitated thoughts


def test_other_picks() -> None:
    assert lengths_of(PickConfig(by="shortest"), {"math": [99]}) == {"a": 10, "b": 12}
    odd = {name: [{**row, "perplexity": row["sample"] + 1.0} for row in rows] for name, rows in ROLLOUTS.items()}
    found = pick(odd, TYPES, {"math": [1]}, PickConfig(by="perplexity"))
    assert [row["sample"] for row in found] == [2, 1]
    drawn = {tuple(lengths_of(PickConfig(by="random", seed=seed), {"math": [1]}).values()) for seed in range(30)}
    assert len(drawn) == 6


def test_several_a_problem_and_a_limit() -> None:
    found = pick(ROLLOUTS, TYPES, {"math": [10]}, PickConfig(per_problem=2))
    assert sorted(row["query_id"] for row in found) == ["a", "a", "b", "b"]
    assert len({(row["query_id"], row["sample"]) for row in found}) == 4
    assert len(pick(ROLLOUTS, TYPES, {"math": [10]}, PickConfig(per_problem=5))) == 5
    assert len(pick(ROLLOUTS, TYPES, {"math": [10]}, PickConfig(limit=1))) == 1


@given(st.integers(0, 2**32))
def test_matching_comes_closer_to_the_imitated_lengths_than_the_shortest_do(seed: int) -> None:
    rng = random.Random(seed)
    imitated = [rng.randint(50, 100) for _ in range(40)]
    rollouts = {
        str(n): [
            {"query_id": str(n), "sample": k, "thought_tokens": rng.randint(10, 100)} for k in range(rng.randint(1, 8))
        ]
        for n in range(30)
    }
    types = dict.fromkeys(rollouts, "math")

    def distance(by: str) -> float:
        found = sorted(row["thought_tokens"] for row in pick(rollouts, types, {"math": imitated}, PickConfig(by=by)))
        return statistics.fmean(abs(a - b) for a, b in zip(found, targets(imitated, len(found)), strict=True))

    assert distance("length") <= distance("shortest") + 1e-9


@pytest.fixture
def explored(world):
    def row(query_id, sample, correct, tokens, thoughts="plan : one ."):
        return {
            "query_id": query_id,
            "sample": sample,
            "thoughts": thoughts,
            "solution": "answer : 1 .",
            "thought_tokens": tokens,
            "solution_tokens": 4,
            "correct": correct,
        }

    rows = [row("a", 0, True, 10), row("a", 1, True, 30), row("a", 2, False, 50), row("b", 0, True, 20)]
    rows += [row("b", 1, True, 21, "a </internal_thoughts> b"), row("c", 0, False, 9)]
    return world.table(EXPLORED, rows, "explored-1")


def test_the_step_writes_longcot_rows_and_the_lengths_before_and_after(world, query, explored):
    queries = world.table(QUERIES, [query(name, f"{name} ?", topic="math") for name in "abc"], "queries")
    text = {"query_id": "t", "sample": 0, "query": "t ?", "topic": "math", "source": "f", "source_row": 0}
    text |= {"thoughts": "x", "solution": "y", "violations": [], "continued": False, "solution_tokens": 1}
    distilled = world.table(DISTILLED, [{**text, "thought_tokens": 30}], "distilled")
    longcot = {"query_id": "t", "sample": 0, "query": "t ?", "thoughts": "x", "solution": "y", "format": "bolt"}
    imitated = world.table(LONGCOT, [{**longcot, "reward": 0.0}], "imitated")
    common = {"explored": explored, "queries": queries, "imitated": imitated, "distilled": [distilled]}
    common |= {"format": "bolt", "max_tokens": 1000}
    made = world.do(pick_explored, config=PickConfig(), perplexities=[], **common)
    assert [(row["query_id"], row["sample"], row["query"]) for row in world.rows(made)] == [
        ("a", 1, "a ?"),
        ("b", 0, "b ?"),
    ]
    counts = world.counts(made)
    assert (counts["rollouts"], counts["right"], counts["picked"]) == (6, 4, 2)
    assert counts["dropped: cannot be written as bolt"] == 1
    assert counts["lengths"]["math"] == {
        "imitated": quantiles([30]),
        "right": quantiles([10, 30, 20]),
        "picked": quantiles([30, 20]),
    }
    measured = world.table(
        PERPLEXITIES,
        [{"query_id": "a", "sample": n, "tokens": 5, "perplexity": p} for n, p in ((0, 3.0), (1, 2.0))],
        "perplexities",
    )
    config = PickConfig(by="perplexity")
    made = world.do(pick_explored, key="p", config=config, perplexities=[measured], **common)
    assert [(row["query_id"], row["sample"]) for row in world.rows(made)] == [("a", 0)]
    assert world.counts(made)["dropped: perplexity not known"] == 1

    made = world.do(pick_explored, key="s", config=PickConfig(), perplexities=[], **{**common, "max_tokens": 25})
    assert [(row["query_id"], row["sample"]) for row in world.rows(made)] == [("a", 0), ("b", 0)]
    assert world.counts(made)["dropped: longer than the training reads"] == 1
