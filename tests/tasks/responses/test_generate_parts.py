"""The parts of the sampling step: order, requests, the ledger's records, limits, rows."""

from __future__ import annotations

import logging

import pytest

from cot_formats import bolt
from infra.serving.completions import Completion, Request
from infra.serving.ledger import Ledger
from nano.vocabulary import END, USER, encoder, tokenizer
from tasks.responses.generate import (
    GenerateConfig,
    Limits,
    QuarantineError,
    TruncationError,
    keep_quarantined,
    keep_samples,
    owed_groups,
    request_for,
    request_seed,
    response_rows,
)

IDS = encoder()


def sample_text(index: int) -> tuple[str, str]:
    return bolt.render(f"plan : step {index} .", f"answer : {index} ."), "stop"


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "shard.jsonl") as opened:
        yield opened


def done(*reasons: str) -> dict:
    """A ledger's record with a sample for each finish reason."""
    samples = [{"text": sample_text(n)[0], "finish_reason": reason, "tokens": 7} for n, reason in enumerate(reasons)]
    return {"samples": samples, "prompt_tokens": 5, "seed": None}


def test_owed_queries_are_grouped_by_equal_examples(ledger):
    shown = {"a": ["e1", "e2"], "b": ["e0", "e3"], "c": ["e1", "e2"], "d": ["e0", "e3"], "e": ["e0", "e1"]}
    assert owed_groups(shown, ledger) == [["e"], ["b", "d"], ["a", "c"]]
    for finished in "bac":
        ledger.append(finished, done("stop"))
    assert owed_groups(shown, ledger) == [["e"], ["d"]]
    assert owed_groups({}, ledger) == []


def test_a_request_has_the_prompts_ids_and_a_seed_only_if_seeds_are_on():
    prompts = {"q": f"{USER} which day {END}"}
    found = request_for(GenerateConfig(seed=3), prompts.__getitem__, tokenizer(), "q")
    assert found.prompt_ids == [IDS[word] for word in (USER, "which", "day", END)]
    assert (found.request_id, found.seed) == ("q", request_seed(3, "q"))
    assert request_for(GenerateConfig(request_seeds=False), prompts.__getitem__, tokenizer(), "q").seed is None


def test_finished_and_quarantined_requests_are_put_into_the_ledger(ledger, caplog):
    counted: list[int] = []
    limits = Limits("responses", GenerateConfig(samples=2, max_truncated_share=0.5), 2, "the ledger")
    request = Request("a", [1, 2, 3], 11)
    keep_samples(
        ledger,
        limits,
        counted.append,
        request,
        [Completion("x", "stop", (4, 5)), Completion("y", "length", (6,))],
    )
    assert ledger["a"] == {
        "samples": [
            {"text": "x", "finish_reason": "stop", "tokens": 2},
            {"text": "y", "finish_reason": "length", "tokens": 1},
        ],
        "prompt_tokens": 3,
        "seed": 11,
    }
    assert counted == [3]
    with caplog.at_level(logging.WARNING):
        keep_quarantined("responses", ledger, limits, Request("b", [1], None), "killed a server twice: status 137")
    assert ledger["b"] == {"quarantined": "killed a server twice: status 137"}
    assert "responses: request b is quarantined: it killed a server twice: status 137" in caplog.text
    assert (limits.truncated, limits.quarantined) == (1, {"b": "killed a server twice: status 137"})


def test_a_shard_fails_once_too_many_requests_are_quarantined():
    def limits(requests: int) -> Limits:
        found = Limits("s", GenerateConfig(max_quarantined_share=0.1), requests, "the ledger")
        found.add("q3", {"quarantined": "was refused: 9000 tokens"})
        return found

    limits(20).add("q5", {"quarantined": "killed a server twice"})
    with pytest.raises(QuarantineError, match=r"s: 2 of 19 .* 10\.0%; the first is query q3: it was refused: 9000 "):
        limits(19).add("q5", {"quarantined": "killed a server twice"})


@pytest.mark.parametrize("requests", [1, 2, 6])
def test_a_single_refused_request_never_ends_a_small_shard(requests):
    Limits("s", GenerateConfig(), requests, "the ledger").add("q", {"quarantined": "was refused: too long"})


def test_a_shard_fails_as_soon_as_too_many_samples_are_bound_to_be_truncated():
    limits = Limits("s", GenerateConfig(samples=2, max_truncated_share=0.25), 4, "the ledger")
    limits.add("a", done("stop", "length"))
    limits.add("b", done("stop", "length"))
    assert limits.truncated == 2
    with pytest.raises(TruncationError, match=r"s: at least 3 of 8 samples \(37\.5%\) are cut .*, limit 25\.0%"):
        limits.add("c", done("length", "stop"))  # whatever becomes of the fourth


def test_rows_follow_the_queries_and_are_counted():
    counts = {"malformed": 0, "completion_tokens": 0}
    records = {"a": done("stop"), "b": {**done("stop", "length"), "seed": 9}}
    records["b"]["samples"][1]["text"] = "no delimiter"
    rows = list(response_rows(tokenizer(), {"b": ["e1"], "a": []}, records, "bolt", False, counts))
    names = ("query_id", "sample", "example_ids", "seed", "prompt_tokens", "finish_reason", "thoughts")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("b", 0, ["e1"], 9, 5, "stop", "plan : step 0 ."),
        ("b", 1, ["e1"], 9, 5, "length", None),
        ("a", 0, [], None, 5, "stop", "plan : step 0 ."),
    ]
    assert [(row["thought_tokens"], row["solution_tokens"]) for row in rows[1:]] == [(0, 0), (5, 4)]
    assert counts == {"malformed": 1, "completion_tokens": 21}
