"""Waiting for the nodes of a Ray cluster, before a flow starts on it."""

from __future__ import annotations

import os

import pytest
from ray.exceptions import AuthenticationError

from infra.cluster import joined

ADDRESS = "10.0.0.1:6379"


@pytest.fixture
def nodes(monkeypatch):
    """Have the cluster answer, one after the other, with these numbers of nodes or errors; the last one stays."""
    monkeypatch.setattr(joined, "POLL_S", 0.01)

    def answers(*given: int | Exception) -> list[str]:
        left, asked = list(given), list[str]()

        def living(address: str) -> int:
            asked.append(address)
            found = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(joined, "living", living)
        return asked

    return answers


def test_it_waits_until_all_have_joined(nodes, capsys):
    asked = nodes(RuntimeError("Connection refused"), OSError("no route"), 0, 1, 2, 3)
    assert joined.main(["3", "--address", ADDRESS]) == 0
    assert asked == [ADDRESS] * 6
    assert capsys.readouterr().err == ""


def test_more_than_asked_for_are_enough(nodes):
    nodes(3)
    assert joined.main(["2", "--address", ADDRESS]) == 0


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            (1,),
            "error: 1 of 2 nodes joined the Ray cluster at 10.0.0.1:6379 within 0.05 s; the nodes' own lines say why\n",
        ),
        ((RuntimeError("it\nfailed"),), "error: 0 of 2 nodes joined the Ray cluster at 10.0.0.1:6379 within 0.05 s "),
    ],
)
def test_nodes_that_do_not_come_are_told(nodes, capsys, answers, said):
    nodes(*answers)
    assert joined.main(["2", "--address", ADDRESS, "--seconds", "0.05"]) == 1
    assert capsys.readouterr().err.startswith(said)


def test_why_nothing_answers_is_told(nodes):
    nodes(RuntimeError("it\nfailed"))
    assert joined.wait(1, ADDRESS, 0.02).endswith("(it failed)")


def test_a_cluster_that_asks_for_a_token_is_no_crash(monkeypatch):
    def refuse(address: str) -> None:
        raise AuthenticationError("InvalidAuthToken")

    monkeypatch.setattr("ray._raylet.GcsClient", refuse)
    assert "within 0.02 s (InvalidAuthToken" in joined.wait(1, ADDRESS, 0.02)


def test_the_address_is_that_of_the_environment(nodes, monkeypatch, capsys):
    asked = nodes(1)
    monkeypatch.setenv("RAY_ADDRESS", ADDRESS)
    assert joined.main(["1"]) == 0
    assert asked == [ADDRESS]
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(SystemExit):
        joined.main(["1"])
    assert "give the cluster's --address, or set RAY_ADDRESS" in capsys.readouterr().err
    assert "RAY_ADDRESS" not in os.environ
