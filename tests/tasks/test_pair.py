from __future__ import annotations

from collections import Counter

from fakes import TinyServers
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.schemas import PAIRS, QUERIES, RESPONSES, SCORES
from nano.vocabulary import ASSISTANT, END, USER
from tasks.pair import PairConfig, choose, pair

samples = st.lists(
    st.fixed_dictionaries(
        {
            "sample": st.integers(0, 20),
            "total": st.sampled_from([0.0, 0.25, 1.0]) | st.floats(-10, 10),
            "completion_tokens": st.integers(1, 100),
        }
    ),
    max_size=10,
    unique_by=lambda row: row["sample"],
)
configs = st.builds(
    PairConfig,
    least_samples=st.integers(2, 6),
    least_margin=st.sampled_from([0.0, 0.5]),
    max_tokens=st.integers(50, 100),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(samples, max_size=8), configs)
def test_chosen_is_the_highest_and_rejected_the_lowest(queries, config):
    funnel: Counter[str] = Counter()
    kept = 0
    for scored in queries:
        found = choose(scored, config, funnel)
        totals = [row["total"] for row in scored]
        if found is None:
            assert (
                len(scored) < config.least_samples
                or max(totals) - min(totals) <= config.least_margin
                or max(row["completion_tokens"] for row in scored) > config.max_tokens
            )
            continue
        kept += 1
        chosen, rejected = found
        assert chosen["total"] == max(totals)
        assert rejected["total"] == min(totals)
        assert chosen["total"] - rejected["total"] > config.least_margin
        assert len(scored) >= config.least_samples
        assert max(chosen["completion_tokens"], rejected["completion_tokens"]) <= config.max_tokens
        assert chosen["sample"] == min(row["sample"] for row in scored if row["total"] == max(totals))
        assert rejected["sample"] == min(row["sample"] for row in scored if row["total"] == min(totals))
    assert funnel["queries"] == len(queries)
    assert funnel["kept"] == kept
    assert kept + sum(n for name, n in funnel.items() if name.startswith("dropped")) == len(queries)


def test_the_step_pairs_texts_as_they_were_drawn(world, model, query, response):
    totals = {"a": [1.0, 3.0, 2.0, 0.0], "b": [1.0, 1.0, 1.0, 1.0], "c": [1.0, 2.0], "d": [0.0, 5.0, 1.0, 1.0]}
    scores = [
        {"query_id": q, "sample": n, "reward_model": "m", "reward": t, "format_reward": 0.0, "total": t}
        for q, values in totals.items()
        for n, t in enumerate(values)
    ]
    rows = [response(row["query_id"], row["sample"]) for row in scores]
    rows.append(response("a", 4, text="without a score", violations=["missing_solution"]))
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
        "dropped: equal scores": 1,
        "dropped: too few scored samples": 2,
        "dropped: too long": 1,
        "kept": 1,
    }
