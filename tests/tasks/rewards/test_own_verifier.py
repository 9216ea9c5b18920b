"""A function of the user's that compares solutions with reference answers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from infra.errors import BadInput
from infra.store.schemas import QUERIES, RESPONSES
from tasks.rewards.score import ScoreConfig, score


@pytest.fixture
def score_with(world, query, response):
    def run(verifier: str):
        rows = [response("a", n, solution=text) for n, text in enumerate(("12", "13"))]
        given = {
            "responses": [world.table(RESPONSES, rows, "responses")],
            "queries": world.table(QUERIES, [{**query("a"), "reference": "12"}], "queries"),
        }
        config = ScoreConfig(verified_weight=1, verifier=verifier)
        return world.do(score, key=verifier.replace(":", "-"), config=config, reward_model=None, servers=world, **given)

    return run


def test_it_decides_what_is_right(world, score_with):
    made = score_with("own_verifier:same")
    assert [row["verified"] for row in world.rows(made)] == [True, False]


def test_a_call_that_fails_is_no_verdict_and_counted_and_if_all_fail_the_step_does(world, score_with):
    made = score_with("own_verifier:sometimes")
    assert [row["verified"] for row in world.rows(made)] == [True, None]
    assert world.counts(made)["not verified: raised"] == 1
    with pytest.raises(BadInput, match=r"none of 2 calls of own_verifier:never had a verdict.*no such luck"):
        score_with("own_verifier:never")


def test_only_what_can_be_read_as_yes_or_no_is_a_verdict(world, score_with):
    for each in ("as_number", "as_object"):
        assert [row["verified"] for row in world.rows(score_with(f"own_verifier:{each}"))] == [True, False]
    with pytest.raises(BadInput, match=r"had a verdict.*it returned \[False, '13'\], expected True, False, 1 or 0"):
        score_with("own_verifier:as_tuple")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("no_such_module:same", "there is no module no_such_module"),
        ("own_verifier:other", "module own_verifier defines no function other"),
        ("__main__:same", "module __main__"),
        ("own_verifier", "verifier"),
        ("os; import os:same", "verifier"),
    ],
)
def test_what_is_not_there_is_refused_with_the_parameters(named, said):
    with pytest.raises(ValidationError, match=said):
        ScoreConfig(verifier=named)


def test_the_file_counts_in_the_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_a.py").write_text("def same(a, b):\n    return a == b\n")
    first = ScoreConfig(verifier="mine_a:same").contents()
    (tmp_path / "mine_a.py").write_text("def same(a, b):\n    return a != b\n")
    assert ScoreConfig(verifier="mine_a:same").contents() != first
    assert ScoreConfig().contents() == ""
