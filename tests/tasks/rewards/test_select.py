from __future__ import annotations

import tempfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import BadInput
from infra.store.manifest import Provenance
from infra.store.schemas import QUERIES, RESPONSES, SCORES
from infra.store.store import Store
from infra.store.tables import write_table
from tasks.rewards.select import (
    SelectConfig,
    at_random,
    first_of_each,
    histogram,
    select,
    threshold,
)

rewards = st.floats(-100, 100) | st.sampled_from([0.0, 0.5, 1.0])


def scored(query_id: str, sample: int, reward: float) -> dict:
    plain = {"query_id": query_id, "sample": sample, "reward_model": "m", "reward": reward, "verified": None}
    return {**plain, "format_reward": 1.0, "total": reward + 1}


@settings(max_examples=30, deadline=None)
@given(values=st.lists(rewards, min_size=1, max_size=60), percentile=st.floats(0, 100))
def test_the_threshold_is_the_exact_percentile(values, percentile):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(root=folder, is_local=True)
        rows = [[scored("q", n, value)] for n, value in enumerate(values)]
        ref = write_table(store, "scores", "k", SCORES, rows, Provenance(), rows_per_part=25)
        assert threshold(store, ref, percentile) == float(np.percentile(values, percentile))


@settings(max_examples=50, deadline=None)
@given(values=st.lists(rewards, min_size=1, max_size=60))
def test_the_histogram_equals_numpys(values):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(root=folder, is_local=True)
        rows = [[scored("q", n, value)] for n, value in enumerate(values)]
        ref = write_table(store, "scores", "k", SCORES, rows, Provenance(), rows_per_part=25)
        samples, edges = np.histogram(values, bins=60)
        assert histogram(store, ref) == {"edges": edges.tolist(), "samples": samples.tolist()}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 7), rewards), unique_by=lambda r: r[:2]), rewards)
def test_the_first_of_each_query_ties_to_the_lowest_sample(table, least):
    rows = [scored(*row) for row in table]
    best = first_of_each(rows, least)
    for query_id in "abc":
        rivals = sorted((-reward, sample) for name, sample, reward in table if name == query_id and reward >= least)
        assert (query_id in best) == bool(rivals)
        if rivals:
            assert (-best[query_id]["reward"], best[query_id]["sample"]) == rivals[0]


def test_a_random_pick_depends_on_no_reward_and_keeps_to_the_threshold():
    rows = [scored(f"q{n}", sample, float(sample)) for n in range(400) for sample in range(4)]
    picked = first_of_each(rows, 1.0, order=at_random)
    assert picked == first_of_each(rows[::-1], 1.0, order=at_random)
    counts = [sum(row["sample"] == sample for row in picked.values()) for sample in range(4)]
    assert (counts[0], sum(counts)) == (0, 400)
    assert all(100 < count < 170 for count in counts[1:])


@pytest.fixture
def chosen(world, query, response):
    """Run the selection on rewards given by query."""

    def run(by_query: dict[str, list[float]], percentile: float, key: str = "k", format: str = "bolt"):
        scores = [scored(q, n, value) for q, values in by_query.items() for n, value in enumerate(values)]
        responses = [response(row["query_id"], row["sample"]) for row in scores]
        config = SelectConfig(percentile=percentile, format=format)
        inputs = {
            "responses": [world.table(RESPONSES, responses, "filtered", key)],
            "scores": world.table(SCORES, scores, "scores", key),
            "queries": world.table(QUERIES, [query(q, f"who is {q} ?") for q in by_query], "queries", key),
        }
        return world.do(select, key=key, config=config, **inputs)

    return run


def test_the_step_writes_plain_text_for_any_model_to_be_trained_on(world, chosen):
    made = chosen({"a": [0.0, 3.0, 3.0], "b": [1.0, 2.0, -1.0], "c": [-5.0, -4.0, -6.0]}, 50)
    assert world.rows(made) == [
        {
            "query_id": name,
            "sample": 1,
            "query": f"who is {name} ?",
            "thoughts": "plan : 1 .",
            "solution": "answer : 1 .",
            "format": "bolt",
            "reward": reward,
        }
        for name, reward in (("a", 3.0), ("b", 2.0))
    ]
    # nine rewards; the median is 0.0, and four are below it
    counts = {"scored": 9, "below the percentile": 4, "not the best of its query": 3, "kept": 2, "threshold": 0.0}
    found = world.counts(made)
    assert {name: found[name] for name in counts} == counts
    assert found["of those kept"]["reward"]["mean"] == 2.5
    assert found["of those kept"]["thought_tokens"] == dict.fromkeys(["mean", "5 %", "median", "95 %", "max"], 4.0)
    assert (found["topics"], found["sources"]) == ({"": 2}, {"f.jsonl": 2})
    assert sum(found["rewards"]["samples"]) == 9
    assert [found["rewards"]["edges"][at] for at in (0, -1)] == [-6.0, 3.0]


def test_a_reward_on_the_threshold_is_kept(world, chosen):
    assert [row["sample"] for row in world.rows(chosen({"a": [1.0, 1.0]}, 100))] == [0]


def test_counts_add_up(world, chosen):
    rng = np.random.default_rng(0)
    for n in range(5):
        table = {f"q{i}": [float(x) for x in rng.integers(0, 9, 4)] for i in range(6)}
        counts = world.counts(chosen(table, float(rng.integers(0, 100)), f"k{n}"))
        below = sum(value < counts["threshold"] for values in table.values() for value in values)
        assert counts["below the percentile"] == below
        assert counts["scored"] == 24 == below + counts["not the best of its query"] + counts["kept"]


def test_another_format_can_be_trained(world, chosen):
    (row,) = world.rows(chosen({"a": [1.0]}, 30, format="r1"))
    assert row["format"] == "r1"


def test_without_scores_the_step_fails_and_says_why(chosen):
    with pytest.raises(ValueError, match="scores/k holds no scores"):
        chosen({"a": []}, 30)


def test_memory_does_not_grow_with_the_texts(world, query, response):
    thoughts, ids = "word " * 1_000, [f"q{n}" for n in range(4_000)]
    given = {
        "responses": [
            world.table(RESPONSES, [response(q, thoughts=f"{q} {thoughts}".strip()) for q in ids], "filtered")
        ],
        "scores": world.table(SCORES, [scored(q, 0, 1.0) for q in ids], "scores"),
        "queries": world.table(QUERIES, [query(q) for q in ids], "queries"),
    }
    tracemalloc.start()
    made = world.do(select, config=SelectConfig(), **given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < made.rows * len(thoughts) / 2
    rows = world.rows(made)
    assert [row["query_id"] for row in rows] == ids
    assert all(row["thoughts"] == f"{row['query_id']} {thoughts}".strip() for row in rows)


@pytest.mark.parametrize("drop_wrong", [True, False])
def test_a_wrong_answer_is_not_trained_on_however_high_its_reward(world, query, response, drop_wrong):
    verified = {("a", 0): False, ("a", 1): True, ("b", 0): False, ("c", 0): None}
    given = {
        "responses": [world.table(RESPONSES, [response(*each)], "filtered", str(n)) for n, each in enumerate(verified)],
        "scores": world.table(
            SCORES, [{**scored(*each, 5.0 - each[1]), "verified": right} for each, right in verified.items()], "scores"
        ),
        "queries": world.table(QUERIES, [query(name) for name in "abc"], "queries"),
    }
    made = world.do(select, config=SelectConfig(drop_wrong=drop_wrong, percentile=0), **given)
    kept = [(row["query_id"], row["sample"]) for row in world.rows(made)]
    assert kept == ([("a", 1), ("c", 0)] if drop_wrong else [("a", 0), ("b", 0), ("c", 0)])
    counts = world.counts(made)
    wrong = {"wrong answer": 2} if drop_wrong else {}
    assert {name: counts[name] for name in ("wrong answer",) if name in counts} == wrong
    parts = ("below the percentile", "wrong answer", "not the best of its query", "kept")
    assert counts["scored"] == sum(counts.get(name, 0) for name in parts)


def test_a_selection_of_wrong_answers_only_fails_and_says_what_to_change(world, query, response):
    given = {
        "responses": [world.table(RESPONSES, [response("a")], "filtered")],
        "scores": world.table(SCORES, [{**scored("a", 0, 0.0), "verified": False}], "scores"),
        "queries": world.table(QUERIES, [query("a")], "queries"),
    }
    with pytest.raises(BadInput, match=r"made: none of 1 responses gives .* or set select\.drop_wrong to false"):
        world.do(select, config=SelectConfig(), **given)
