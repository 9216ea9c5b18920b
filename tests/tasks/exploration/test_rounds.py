"""What a round keeps of its waves of rollouts, and the pairs of thoughts made of them."""

from __future__ import annotations

from collections import Counter

import pytest
from fakes import TinyServers

from infra.store.schemas import EXPLORED, LONGCOT, PERPLEXITIES, QUERIES, RESPONSES, SCORES
from tasks.exploration.gather import gather
from tasks.exploration.merge import merge_longcot
from tasks.exploration.pairs import choose, pair_thoughts
from tasks.exploration.unsolved import unsolved


@pytest.fixture
def queries(world, query):
    return world.table(QUERIES, [query(name, f"{name} ?", reference="1") for name in "abc"], "queries")


def scores(world, right, key):
    """A table of scores: `right` has whether each sample of a query is right."""
    plain = {"reward_model": None, "reward": 0.0, "format_reward": 1.0, "total": 1.0}
    rows = [
        {"query_id": name, "sample": n, "verified": each, **plain}
        for name, samples in right.items()
        for n, each in enumerate(samples)
    ]
    return world.table(SCORES, rows, "scores", key)


def test_problems_with_enough_right_rollouts_are_left_out_of_the_next_wave(world, queries, response):
    waves = [
        {"a": [True, False], "b": [False, False], "c": [True, True]},
        {"a": [True], "b": [False]},
        {"b": [True, True]},
    ]
    responses = [
        world.table(
            RESPONSES, [response(name, n) for name, each in wave.items() for n in range(len(each))], "r", str(k)
        )
        for k, wave in enumerate(waves)
    ]
    tables = [scores(world, wave, str(k)) for k, wave in enumerate(waves)]
    for done, expected in ((1, ["a", "b"]), (2, ["b"]), (3, [])):
        given = {"responses": responses[:done], "scores": tables[:done], "shards": 1}
        left = world.do(unsolved, key=str(done), queries=queries, enough=2, **given)
        assert [row["query_id"] for row in world.rows(left)] == expected


def test_a_right_rollout_that_is_malformed_or_cut_does_not_solve_its_problem(world, queries, response):
    rows = [response("a", 0, finish_reason="length"), response("b", 0, violations=["text_after"]), response("c", 0)]
    given = {
        "responses": [world.table(RESPONSES, rows, "r")],
        "scores": [scores(world, {"a": [True], "b": [True], "c": [True]}, "1")],
        "shards": 1,
    }
    left = world.do(unsolved, queries=queries, enough=1, **given)
    assert [row["query_id"] for row in world.rows(left)] == ["a", "b"]
    made = world.do(gather, key="g", queries=queries, **given)
    assert world.counts(made)["solved"] == 1


def test_a_round_has_its_well_formed_rollouts_numbered_over_all_waves(world, queries, response):
    cut = {"finish_reason": "length"}
    broken = {"violations": ["unclosed_thoughts"], "solution": None}
    shards = [
        [response("a", 0), response("a", 1, **cut), response("c", 0), response("c", 1)],
        [response("b", 0), response("b", 1, **broken)],
        [response("a", 0)],
        [response("b", 0)],
    ]
    responses = [world.table(RESPONSES, rows, "rollouts", str(n)) for n, rows in enumerate(shards)]
    waves = [scores(world, {"a": [False, True], "b": [False, True], "c": [True, False]}, "1")]
    waves.append(scores(world, {"a": [True], "b": [False]}, "2"))
    made = world.do(gather, queries=queries, responses=responses, scores=waves, shards=2)
    found = [(row["query_id"], row["sample"], row["correct"]) for row in world.rows(made)]
    assert found == [("a", 0, False), ("c", 0, True), ("c", 1, False), ("b", 0, False), ("a", 2, True), ("b", 2, False)]
    assert world.counts(made) == {
        "problems": 3,
        "rollouts": 8,
        "right": 2,
        "wrong": 4,
        "dropped: truncated": 1,
        "dropped: malformed": 1,
        "solved": 2,
    }


def test_a_round_without_a_right_rollout_is_an_empty_result_and_no_error(world, queries, response):
    responses = [world.table(RESPONSES, [response("a", 0)], "rollouts")]
    made = world.do(gather, queries=queries, responses=responses, scores=[scores(world, {"a": [False]}, "1")], shards=1)
    assert world.counts(made)["solved"] == 0


def test_a_pair_is_right_and_unlikely_against_wrong_and_likely():
    def rollout(sample, correct, perplexity):
        return {"sample": sample, "correct": correct, "perplexity": perplexity, "thoughts": str(sample)}

    funnel: Counter[str] = Counter()
    rollouts = [rollout(0, True, 2.0), rollout(1, True, 5.0), rollout(2, False, 3.0), rollout(3, False, 1.5)]
    chosen, rejected = choose(rollouts, funnel)
    assert (chosen["sample"], rejected["sample"]) == (1, 3)
    assert choose(rollouts[:2], funnel) is None
    assert choose(rollouts[2:], funnel) is None
    assert funnel == {"problems": 3, "kept": 1, "dropped: no wrong rollout": 1, "dropped: no right rollout": 1}


def test_thoughts_are_not_compared_with_themselves():
    """Where a right and a wrong rollout differ in their solutions alone, other ones are compared, or none."""
    funnel: Counter[str] = Counter()
    same = [{"sample": n, "correct": n == 0, "perplexity": 2.0, "thoughts": "as before"} for n in (0, 1)]
    assert choose(same, funnel) is None
    found = choose([*same, {**same[1], "sample": 2, "thoughts": "another way"}], funnel)
    assert found is not None
    assert [each["sample"] for each in found] == [0, 2]
    assert funnel == {"problems": 2, "dropped: same thoughts": 1, "kept": 1}


def test_a_rollout_without_a_verdict_is_neither_right_nor_wrong(world, queries, response):
    responses = [world.table(RESPONSES, [response("a", 0), response("a", 1)], "rollouts")]
    given = {"responses": responses, "scores": [scores(world, {"a": [None, False]}, "1")], "shards": 1}
    made = world.do(gather, queries=queries, **given)
    assert [(row["sample"], row["correct"]) for row in world.rows(made)] == [(1, False)]
    assert world.counts(made)["dropped: not verified"] == 1


def test_pairs_are_thoughts_without_solutions(world, queries, model):
    def row(query_id, sample, correct):
        texts = {"thoughts": f"plan : {query_id} {sample} .", "solution": "answer : 1 ."}
        return {
            "query_id": query_id,
            "sample": sample,
            **texts,
            "thought_tokens": 5,
            "solution_tokens": 4,
            "correct": correct,
        }

    rounds = [
        world.table(EXPLORED, [row("a", 0, True), row("a", 1, False), row("b", 0, False)], "explored", "1"),
        world.table(EXPLORED, [row("b", 0, True), row("b", 1, False), row("b", 2, False)], "explored", "2"),
    ]
    measured = [
        world.table(
            PERPLEXITIES,
            [{"query_id": name, "sample": n, "tokens": 5, "perplexity": p} for name, n, p in rows],
            "perplexities",
            key,
        )
        for key, rows in (
            ("1", [("a", 0, 2.0), ("b", 0, 9.0)]),
            ("2", [("a", 1, 3.0)]),
            ("3", [("b", 0, 2.5), ("b", 2, 1.0)]),
            ("4", []),  # b 1 has no perplexity
        )
    ]
    common = {"iteration": 2, "queries": queries, "format": "bolt", "model": model, "shards": 2}
    common["servers"] = TinyServers(world.work_dir)
    made = world.do(pair_thoughts, explored=rounds, perplexities=measured, **common)
    first, second = world.rows(made)
    assert first["chosen"] == "<internal_thoughts>\nplan : a 0 .\n</internal_thoughts>\n\n<external_solution>\n"
    assert first["rejected"] == "<internal_thoughts>\nplan : a 1 .\n</internal_thoughts>\n\n<external_solution>\n"
    assert first["prompt"] == "<|user|> a ? <|end|><|assistant|>"
    assert (second["chosen_sample"], second["rejected_sample"]) == (0, 2)
    assert (second["chosen_score"], second["rejected_score"]) == (2.5, 1.0)
    funnel = {"problems": 3, "kept": 2, "dropped: no right rollout": 1, "rollouts without a perplexity": 1}
    assert world.counts(made) == funnel
    made = world.do(pair_thoughts, key="none", explored=rounds[:1], perplexities=[measured[0], measured[3]], **common)
    assert made.rows == 0


def test_merged_data_have_all_rows_in_order(world):
    def table(names, key):
        plain = {"sample": 0, "query": "?", "thoughts": "x", "solution": "y", "format": "bolt", "reward": 0.0}
        return world.table(LONGCOT, [{"query_id": name, **plain} for name in names], "longcot", key)

    made = world.do(merge_longcot, tables=[table("ab", "1"), table("", "2"), table("c", "3")])
    assert [row["query_id"] for row in world.rows(made)] == ["a", "b", "c"]
    assert world.counts(made) == {"longcot/1": 2, "longcot/2": 0, "longcot/3": 1}
