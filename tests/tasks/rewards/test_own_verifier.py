"""A function of the user's that compares solutions with reference answers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from infra.errors import BadInput
from infra.store.schemas import QUERIES, RESPONSES
from tasks.rewards.score import ScoreConfig, score
from tasks.rewards.verify import CALLS


@pytest.fixture
def score_with(world, query, response):
    def run(verifier: str, answers: int = 2):
        rows = [response("a", n, solution=str(12 + n)) for n in range(answers)]
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
    with pytest.raises(BadInput, match=r"none of 32 calls of own_verifier:never had a verdict.*no such luck"):
        score_with("own_verifier:never", CALLS)


def test_a_few_calls_without_a_verdict_end_no_step(world, score_with, caplog):
    """A wave of rollouts may have one answer left, and it may be unreadable."""
    made = score_with("own_verifier:never", CALLS - 1)
    assert {row["verified"] for row in world.rows(made)} == {None}
    assert world.counts(made)["not verified: raised"] == CALLS - 1
    assert "none of 31 calls of own_verifier:never had a verdict; the last one: raised: " in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "from own_verifier import same",
        "import own_verifier\nsame = own_verifier.same",
        "try:\n    from nowhere import same\nexcept ImportError:\n    def same(a, b): return a == b",
        "if True:\n    from own_verifier import sometimes as same",
    ],
)
def test_a_function_may_come_from_elsewhere(tmp_path, monkeypatch, text):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    assert ScoreConfig(verifier=f"{name}:same").verifier == f"{name}:same"


def test_a_module_that_is_no_python_is_refused_with_the_parameters(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_verifier.py").write_text("def same(:")
    with pytest.raises(ValidationError, match=r"module broken_verifier cannot be read: .* \(line 1\)"):
        ScoreConfig(verifier="broken_verifier:same")


def test_only_what_can_be_read_as_yes_or_no_is_a_verdict(world, score_with):
    for each in ("as_number", "as_object"):
        assert [row["verified"] for row in world.rows(score_with(f"own_verifier:{each}"))] == [True, False]
    with pytest.raises(BadInput, match=r"had a verdict.*it returned \[False, '43'\], expected True, False, 1 or 0"):
        score_with("own_verifier:as_tuple", CALLS)


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
