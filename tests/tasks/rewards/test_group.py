"""The samples that a policy gradient trains on: all of an iteration's, with their rewards."""

from __future__ import annotations

import pytest
from fakes import TinyServers

from infra.errors import BadInput
from infra.store.schemas import QUERIES, RESPONSES, SAMPLES, SCORES
from nano.vocabulary import ASSISTANT, END, USER
from tasks.rewards.group import NO_SIGNAL, group


def score(query_id: str, sample: int, total: float) -> dict[str, object]:
    plain = {"reward_model": "m", "reward": total, "format_reward": 0.0, "verified": None}
    return {"query_id": query_id, "sample": sample, **plain, "total": total}


@pytest.fixture
def grouped(world, model, query):
    def run(rows, scores):
        return world.do(
            group,
            iteration=2,
            responses=[world.table(RESPONSES, rows[::2], key="k0"), world.table(RESPONSES, rows[1::2], key="k1")],
            scores=world.table(SCORES, scores, "scores"),
            queries=world.table(QUERIES, [query(q, f"who is {q} ?") for q in "abc"], "queries"),
            model=model,
            servers=TinyServers(world.work_dir),
        )

    return run


def test_every_sample_has_a_reward_and_those_of_a_query_are_neighbours(world, grouped, response):
    """A shard has every other query. Samples without a score get the lowest reward there is."""
    rows = [response(q, n) for n in range(3) for q in ("a", "b")] + [response("c", 0)]
    rows[3]["finish_reason"] = "length"  # b/1, which has no score
    scores = [score("a", 0, 1.5), score("a", 1, -2.0), score("a", 2, 0.5), score("b", 0, 3.0), score("b", 2, 3.0)]
    made = grouped(rows, scores)
    found = world.rows(made)
    assert list(found[0]) == SAMPLES.names
    assert [(row["query_id"], row["sample"], row["reward"], row["ended"]) for row in found] == [
        ("a", 0, 1.5, True),
        ("a", 1, -2.0, True),
        ("a", 2, 0.5, True),
        ("b", 0, 3.0, True),
        ("b", 1, -2.0, False),
        ("b", 2, 3.0, True),
        ("c", 0, -2.0, True),
    ]
    assert found[0]["prompt"] == f"{USER} who is a ? {END}{ASSISTANT}"
    assert found[0]["response"] == "text of a/0"
    assert {row["iteration"] for row in found} == {2}
    assert world.counts(made) == {
        "queries": 3,
        "samples": 7,
        "cut at max_tokens": 1,
        "without a score": 2,
        NO_SIGNAL: 1,
    }


def test_a_sample_without_a_verdict_has_the_mean_reward_of_the_querys_others(world, grouped, response):
    rows = [response("a", n) for n in range(3)] + [response("b", n) for n in range(2)]
    verdicts = [score("a", 0, 2.0) | {"verified": True}, score("a", 1, 1.0) | {"verified": False}, score("a", 2, 1.0)]
    made = grouped(rows, [*verdicts, score("b", 0, 0.5), score("b", 1, 3.0)])
    found = {(row["query_id"], row["sample"]): row["reward"] for row in world.rows(made)}
    assert found == {("a", 0): 2.0, ("a", 1): 1.0, ("a", 2): 1.5, ("b", 0): 0.5, ("b", 1): 3.0}


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        ([1.0, 1.0], "the 2 scores of the iteration are all equal, so that there is nothing to learn"),
        ([], "no sample of the iteration has a score, since none has a solution"),
    ],
)
def test_scores_that_are_all_equal_are_refused(grouped, response, totals, said):
    scores = [score("a", number, total) for number, total in enumerate(totals)]
    with pytest.raises(BadInput, match=said):
        grouped([response("a", 0), response("a", 1)], scores)
