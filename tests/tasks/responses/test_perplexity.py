"""The perplexity of thoughts: what is asked of the server, and what is made of its answers."""

from __future__ import annotations

import math

import pytest
from fakes import TinyServers

from infra.store.schemas import QUERIES, RESPONSES
from infra.text.chat import load_tokenizer
from nano.vocabulary import tokenizer
from tasks.responses.generate import QuarantineError
from tasks.responses.perplexity import PerplexityConfig, measure_perplexity, reading


def log_probs(body):
    """A server's answer: the log-probability of each token is minus its place in the prompt, over 10."""
    ids = body["prompt"]
    found = [None, *({str(token): {"logprob": -place / 10}} for place, token in enumerate(ids[1:], 1))]
    choice = {"index": 0, "text": "x", "finish_reason": "length", "token_ids": [1], "prompt_logprobs": found}
    return {"choices": [choice]}


@pytest.fixture
def queries(world, query):
    return world.table(QUERIES, [query(f"q{n}", "which day is it ?") for n in range(5)], "queries")


def test_only_the_thoughts_count_and_shards_share_the_rows_out(world, queries, model, response, serve):
    rows = [response(f"q{n}", n, thoughts="plan : one .") for n in range(5)]
    rows[3]["thoughts"] = None
    texts = [world.table(RESPONSES, rows[:2], "r", "1"), world.table(RESPONSES, rows[2:], "r", "2")]
    server = serve(completions=log_probs)
    servers = TinyServers(world.work_dir, server)
    common = {"config": PerplexityConfig(), "texts": texts, "queries": queries, "format": "bolt", "model": model}
    made = [world.do(measure_perplexity, key=str(n), shard=n, shards=2, servers=servers, **common) for n in range(2)]
    found = [[(row["query_id"], row["sample"], row["tokens"]) for row in world.rows(ref)] for ref in made]
    assert found == [[("q0", 0, 4), ("q2", 2, 4)], [("q1", 1, 4), ("q4", 4, 4)]]
    begin = len(tokenizer().encode("<|user|> which day is it ? <|end|><|assistant|> <internal_thoughts>"))
    expected = math.exp(sum((begin + n) / 10 for n in range(4)) / 4)
    assert world.rows(made[0])[0]["perplexity"] == pytest.approx(expected)
    assert world.counts(made[0]) == {"measured": 2, "tokens": 8, "quarantined": 0}
    assert {body["prompt_logprobs"] for body in server.asked} == {0}
    assert {body["max_tokens"] for body in server.asked} == {1}


def test_what_was_measured_is_not_asked_again(world, queries, model, response, serve):
    texts = [world.table(RESPONSES, [response(f"q{n}", thoughts=f"plan : {n} .") for n in range(5)], "r")]
    server = serve(
        completions=lambda body: (
            {"status": 400, "error": {"message": "no"}} if len(server.asked) == 3 else log_probs(body)
        )
    )
    servers = TinyServers(world.work_dir, server)
    common = {"texts": texts, "queries": queries, "format": "bolt", "model": model}
    config = PerplexityConfig(in_flight=1)
    made = world.do(measure_perplexity, config=config, servers=servers, **common)
    assert world.counts(made) == {"measured": 4, "tokens": 16, "quarantined": 1}  # a single one never ends a step
    refusing = serve(completions=lambda _: {"status": 400, "error": {"message": "too long"}})
    with pytest.raises(QuarantineError, match=r"5 of 5 thoughts have no perplexity.*too long"):
        world.do(measure_perplexity, key="2", config=config, servers=TinyServers(world.work_dir, refusing), **common)
    asked = len(refusing.asked)
    with pytest.raises(QuarantineError):
        world.do(measure_perplexity, key="2", config=config, servers=TinyServers(world.work_dir, refusing), **common)
    assert len(refusing.asked) == asked


def test_what_the_template_opens_is_not_repeated(world, opening_model):
    opened = opening_model("<think>\n")
    spoken = load_tokenizer(world.store.local_path(f"{opened.step}/{opened.key}"))
    ids = reading(spoken, "which day is it ?", "plan : one .", "r1").ids
    assert spoken.decode(ids).count("<|unk|>") == 1  # <think>, which the nano tokenizer does not know
