from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from functools import partial
from typing import Any

import pytest
from fakes import TinyServers
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import BadInput
from infra.store.schemas import PAIRS, QUERIES, RESPONSES, SCORES
from nano.vocabulary import ASSISTANT, END, USER
from tasks.rewards.pair import PairConfig, choose, pair

samples = st.lists(
    st.fixed_dictionaries(
        {
            "sample": st.integers(0, 20),
            "reward": st.sampled_from([-1.0, 0.0, 1.0]) | st.floats(-10, 10),
            "total": st.sampled_from([0.0, 0.25, 1.0]) | st.floats(-10, 10),
            "completion_tokens": st.integers(1, 100),
            "finish_reason": st.sampled_from(["stop", "stop", "stop", "length"]),
            "verified": st.none(),
        }
    ),
    max_size=10,
    unique_by=lambda row: row["sample"],
)
configs = st.builds(
    PairConfig,
    min_samples=st.integers(2, 6),
    min_margin=st.sampled_from([0.0, 0.5]),
    boundary=st.sampled_from([None, 0.0, -2.0]),
    max_tokens=st.integers(50, 100),
)


def test_a_sample_without_a_verdict_is_in_no_pair_where_others_have_one():
    def row(sample: int, total: float, verified: bool | None) -> dict[str, Any]:
        known = {"reward": total, "completion_tokens": 1, "finish_reason": "stop"}
        return {"sample": sample, "total": total, "verified": verified, **known}

    funnel: Counter[str] = Counter()
    found = choose([row(0, 1, True), row(1, 0.5, False), row(2, 0, None)], PairConfig(min_samples=2), funnel)
    assert found is not None
    assert [each["sample"] for each in found] == [0, 1]
    assert funnel["samples without a verdict"] == 1
    found = choose([row(0, 1, None), row(1, 0.5, None), row(2, 0, None)], PairConfig(min_samples=2), funnel)
    assert found is not None
    assert [each["sample"] for each in found] == [0, 2]


@settings(max_examples=300, deadline=None)
@given(st.lists(samples, max_size=8), configs)
def test_chosen_is_the_highest_and_rejected_the_lowest(queries, config):
    funnel: Counter[str] = Counter()
    kept = cut = 0
    for drawn in queries:
        found = choose(drawn, config, funnel)
        scored = [row for row in drawn if row["finish_reason"] == "stop"]  # truncated samples are never trained on
        cut += len(drawn) - len(scored)
        totals = [row["total"] for row in scored]
        if found is None:
            best, worst = (
                {row["reward"] for row in scored if row["total"] == extreme(totals)}
                for extreme in (partial(max, default=0), partial(min, default=0))
            )
            assert (
                len(scored) < config.min_samples
                or max(totals) - min(totals) <= config.min_margin
                or (config.boundary is not None and (min(best) <= config.boundary or max(worst) >= config.boundary))
                or max(row["completion_tokens"] for row in scored) > config.max_tokens
            )
            continue
        kept += 1
        chosen, rejected = found
        assert chosen["total"] == max(totals)
        assert rejected["total"] == min(totals)
        assert chosen["total"] - rejected["total"] > config.min_margin
        assert config.boundary is None or chosen["reward"] > config.boundary > rejected["reward"]
        assert len(scored) >= config.min_samples
        assert max(chosen["completion_tokens"], rejected["completion_tokens"]) <= config.max_tokens
        assert chosen["sample"] == min(row["sample"] for row in scored if row["total"] == max(totals))
        assert rejected["sample"] == min(row["sample"] for row in scored if row["total"] == min(totals))
    assert funnel["queries"] == len(queries)
    assert funnel["kept"] == kept
    assert funnel["samples cut at max_tokens"] == cut
    assert kept + sum(n for name, n in funnel.items() if name.startswith("dropped")) == len(queries)


def test_the_step_pairs_texts_as_they_were_generated(world, model, query, response):
    totals = {
        "a": [1.0, 3.0, 2.0, 0.0, 9.0, -9.0],
        "b": [1.0, 1.0, 1.0, 1.0],
        "c": [1.0, 2.0],
        "d": [0.0, 5.0, 1.0, 1.0],
    }
    scores = [
        {"query_id": q, "sample": n, "reward_model": "m", "reward": t, "format_reward": 0.0, "total": t}
        for q, values in totals.items()
        for n, t in enumerate(values)
    ]
    rows = [response(row["query_id"], row["sample"]) for row in scores]
    for row in rows[4:6]:  # a's best and worst are truncated
        row["finish_reason"] = "length"
    rows.append(response("a", 6, text="without a score", violations=["missing_solution"]))
    rows[-2 - 2]["completion_tokens"] = 400  # d/1, the best of d
    assert (rows[-4]["query_id"], rows[-4]["sample"]) == ("d", 1)
    made = world.do(
        pair,
        config=PairConfig(max_tokens=300),
        iteration=2,
        responses=[world.table(RESPONSES, rows[::2], key="k0"), world.table(RESPONSES, rows[1::2], key="k1")],
        scores=world.table(SCORES, scores, "scores"),
        queries=world.table(QUERIES, [query(q, f"who is {q} ?") for q in "abcde"], "queries"),
        model=model,
        servers=TinyServers(world.work_dir),
    )
    assert world.rows(made) == [
        {
            "query_id": "a",
            "iteration": 2,
            "prompt": f"{USER} who is a ? {END}{ASSISTANT}",
            "chosen": "text of a/1",
            "rejected": "text of a/3",
            "chosen_sample": 1,
            "rejected_sample": 3,
            "chosen_score": 3.0,
            "rejected_score": 0.0,
            "chosen_tokens": 9,
            "rejected_tokens": 9,
        }
    ]
    assert list(world.rows(made)[0]) == PAIRS.names
    assert world.counts(made) == {
        "queries": 5,
        "samples cut at max_tokens": 2,
        "dropped: equal scores": 1,
        "dropped: too few scored samples": 2,
        "dropped: too long": 1,
        "kept": 1,
    }


def test_pairs_keep_the_order_of_the_queries_and_memory_does_not_grow_with_the_texts(world, model, query, response):
    text, rng = "word " * 1_600, random.Random(0)
    ids = [f"q{n}" for n in rng.sample(range(9_999), 2_000)]
    drawn = [response(q, n, text=f"{q} {n} {text}") for q in ids for n in range(3)]
    scores = [
        {"query_id": row["query_id"], "sample": row["sample"], "reward_model": "m", "reward": 0.0, "format_reward": 0.0}
        | {"total": float(rng.randrange(50))}
        for row in drawn
    ]
    shards = [[row for row in drawn if ids.index(row["query_id"]) % 3 == n] for n in range(3)]
    given = {
        "config": PairConfig(min_samples=3),
        "iteration": 1,
        "responses": [world.table(RESPONSES, rows, key=f"k{n}") for n, rows in enumerate(shards)],
        "scores": world.table(SCORES, scores, "scores"),
        "queries": world.table(QUERIES, [query(q, f"who is {q} ?") for q in ids], "queries"),
        "model": model,
        "servers": TinyServers(world.work_dir),
    }
    tracemalloc.start()
    made = world.do(pair, **given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < made.rows * len(text)  # half of what the pairs hold

    samples = [{**row, "total": score["total"], "verified": None} for row, score in zip(drawn, scores, strict=True)]
    by_query = [(q, choose(samples[3 * n : 3 * n + 3], given["config"], Counter())) for n, q in enumerate(ids)]
    expected = [(q, both[0]["text"], both[1]["text"]) for q, both in by_query if both]
    assert [(row["query_id"], row["chosen"], row["rejected"]) for row in world.rows(made)] == expected
    assert len(expected) > 1_900


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (PairConfig(min_samples=2), "'dropped: equal scores': 1"),
        (PairConfig(min_samples=3), "'dropped: too few scored samples': 1"),
    ],
)
def test_without_any_pair_the_step_fails_before_training(world, model, query, response, config, why):
    scores = [
        {"query_id": "q", "sample": n, "reward_model": "m", "reward": 1.0, "format_reward": 0.0, "total": 1.0}
        for n in range(2)
    ]
    with pytest.raises(BadInput, match="no query gives a preference pair") as error:
        world.do(
            pair,
            config=config,
            iteration=1,
            responses=[world.table(RESPONSES, [response("q", n) for n in range(2)])],
            scores=world.table(SCORES, scores, "scores"),
            queries=world.table(QUERIES, [query("q", "who ?")], "queries"),
            model=model,
            servers=TinyServers(world.work_dir),
        )
    assert why in str(error.value)


def test_chosen_and_rejected_are_on_either_side_of_the_boundary():
    rows = [
        {
            "sample": n,
            "reward": reward,
            "total": reward,
            "completion_tokens": 9,
            "finish_reason": "stop",
            "verified": None,
        }
        for n, reward in enumerate([3.0, 1.0, -2.0])
    ]
    found = choose(rows, PairConfig(min_samples=2, boundary=0.0), Counter())
    assert found
    assert [row["sample"] for row in found] == [0, 2]
    for boundary in (-2.0, 3.0, 5.0):
        funnel: Counter[str] = Counter()
        assert choose(rows, PairConfig(min_samples=2, boundary=boundary), funnel) is None
        assert funnel["dropped: same side of the boundary"] == 1
