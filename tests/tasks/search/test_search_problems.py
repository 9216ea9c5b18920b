"""A shard of problems searched with fake servers: the tree's table, its answers, and what a kill costs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeVllm, TinyServers

from infra.errors import BadInput
from infra.serving.vllm_server import ServerError
from infra.store.schemas import QUERIES
from nano.vocabulary import encoder
from tasks.mutual.adapt import StepFormat
from tasks.mutual.judge import JudgeConfig
from tasks.responses.generate import QuarantineError, TruncationError
from tasks.search.answers import chosen_solution, searched_answers, solution_text
from tasks.search.ask import SearchSampling
from tasks.search.search_problems import search_problems
from tasks.search.strategies import SearchConfig

NANO = StepFormat(delimiter=" .", answer="answer :")
ASKS = JudgeConfig(template=Path("nano/prompts/judge.md"), right="yes", wrong="no")
IDS = encoder()
WORDS = {number: word for word, number in IDS.items()}


def policy_and_judge(body: dict[str, Any]) -> dict[str, Any]:
    """A policy that writes "N + 1 = ?" with a wrong digit in every second sample, then states the digit as its answer;
    and a judge that finds the answer 2 right."""
    text = " ".join(WORDS[number] for number in body["prompt"])
    if "logprob_token_ids" in body:
        p = 0.9 if "answer : 2 ." in text else 0.1
        log_probs = {f"token_id:{IDS['yes']}": math.log(p), f"token_id:{IDS['no']}": math.log(1 - p)}
        choice = {"index": 0, "text": " yes", "finish_reason": "length", "token_ids": [7]}
        return {"choices": [{**choice, "logprobs": {"top_logprobs": [log_probs]}}]}
    written = text.rpartition("<|assistant|>")[2].strip()
    choices = []
    for index in range(body["n"]):
        digit = written.rpartition("= ")[2].split(" ")[0] if "=" in written else str(2 + index % 2)
        rest = f" answer : {digit} ." if "=" in written else f" 1 + 1 = {digit} . answer : {digit} ."
        stopped = bool(body["stop"])
        text = rest.partition(" .")[0] if stopped else rest
        choice = {"index": index, "text": text, "finish_reason": "stop", "token_ids": list(range(len(text.split())))}
        choices.append({**choice, "stop_reason": " ." if stopped else None})
    return {"choices": choices}


@pytest.fixture
def queries(world, query):
    return world.table(
        QUERIES,
        [query(name, f"which day is {day} ?") for name, day in zip("abc", ("mon", "tue", "wed"), strict=True)],
        "queries",
    )


def given(queries, model, servers, **search):
    config = SearchConfig(**{"tokens": 60, "branches": 4, **search})
    common = {"sampling": SearchSampling(), "format": NANO, "judge": ASKS, "verifier": "short-answer"}
    return {**common, "config": config, "queries": queries, "policy": model, "reward_model": model, "servers": servers}


@pytest.mark.parametrize("strategy", ["mctsg", "mcts", "beam", "sampling"])
def test_the_tree_and_its_answer_are_kept(world, queries, model, strategy):
    servers = TinyServers(world.work_dir, FakeVllm(completions=policy_and_judge))
    made = world.do(search_problems, **given(queries, model, servers, strategy=strategy))
    rows = world.rows(made)
    counts = world.counts(made)
    assert counts["problems"] == 3
    assert counts["without a solution"] == 0
    for name in "abc":
        own = [row for row in rows if row["query_id"] == name]
        assert [row["node"] for row in own] == list(range(len(own)))
        best = chosen_solution(own, "best")
        assert solution_text(own, best) == " 1 + 1 = 2 . answer : 2 ."
        assert (best["answer"], best["reward"]) == ("2", pytest.approx(0.9))
        root = own[0]
        assert root["visits"] == sum(row["solution"] for row in own)
        assert root["tokens"] >= sum(row["tokens"] for row in own[1:])
    answers = world.do(searched_answers, "answers", searched=[made], vote="best", policy=model, servers=servers)
    assert {row["solution"] for row in world.rows(answers)} == {"1 + 1 = 2 . answer : 2 ."}
    assert sum(row["completion_tokens"] for row in world.rows(answers)) == counts["completion_tokens"]


def test_a_search_that_was_killed_asks_no_finished_request_again(world, queries, model, monkeypatch):
    whole = FakeVllm(completions=policy_and_judge)
    undisturbed = world.do(search_problems, key="whole", **given(queries, model, TinyServers(world.work_dir, whole)))
    asked = 0
    for _ in range(10):
        server = FakeVllm(completions=policy_and_judge)
        server.dies_after = 7
        servers = TinyServers(world.work_dir, server)
        try:
            made = world.do(search_problems, key="killed", **given(queries, model, servers))
        except ServerError:
            asked += len(server.asked)
            continue
        asked += len(server.asked)
        break
    assert world.rows(made) == world.rows(undisturbed)
    assert asked <= len(whole.asked) + 10  # what was in flight when the server died may be asked again


def test_a_judge_that_seldom_begins_with_an_answer_is_told(world, queries, model, caplog):
    """Of two unlikely words, the likelier one says little about a solution."""

    def thinks_first(body: dict[str, Any]) -> dict[str, Any]:
        reply = policy_and_judge(body)
        if "logprob_token_ids" in body:
            (found,) = reply["choices"][0]["logprobs"]["top_logprobs"]
            found.update({name: each - 5 for name, each in found.items()})
        return reply

    for key, replies in (("plain", policy_and_judge), ("thinks", thinks_first)):
        servers = TinyServers(world.work_dir, FakeVllm(completions=replies))
        world.do(search_problems, key=key, **given(queries, model, servers))
        assert ("may be no better than chance" in caplog.text) is (key == "thinks")


def test_without_a_reward_model_only_votes_are_possible(world, queries, model):
    servers = TinyServers(world.work_dir, FakeVllm(completions=policy_and_judge))
    plain = {
        **given(queries, model, servers, strategy="sampling"),
        "reward_model": None,
        "judge": None,
    }
    made = world.do(search_problems, **plain)
    assert {row["reward"] for row in world.rows(made)} == {None}
    with pytest.raises(BadInput, match=r"strategy mctsg needs a reward model"):
        world.do(search_problems, key="2", **{**plain, "config": SearchConfig()})


@pytest.mark.parametrize("judging", [True, False])
def test_too_many_refusals_stop_the_step_with_the_reason(world, queries, model, judging):
    """Of the judge, or of the policy."""

    def refuses(body):
        bad = ("logprob_token_ids" in body) is judging
        return {"status": 400, "error": {"message": "out of sorts"}} if bad else policy_and_judge(body)

    servers = TinyServers(world.work_dir, FakeVllm(completions=refuses))
    with pytest.raises(QuarantineError, match=r"requests were refused, limit 1.0%; the first is .*: it .*out of sorts"):
        world.do(search_problems, **given(queries, model, servers))


def test_a_problem_whose_requests_are_refused_has_no_answer(world, queries, model):
    def refuses(body):
        text = " ".join(WORDS[number] for number in body["prompt"])
        bad = "which day is tue" in text
        return {"status": 400, "error": {"message": "no"}} if bad else policy_and_judge(body)

    servers = TinyServers(world.work_dir, FakeVllm(completions=refuses))
    made = world.do(search_problems, **given(queries, model, servers))
    assert world.counts(made)["without a solution"] == 1
    answers = world.do(searched_answers, "answers", searched=[made], vote="best", policy=model, servers=servers)
    assert [row["violations"] for row in world.rows(answers)] == [[], ["empty_solution"], []]


def test_one_problem_whose_requests_are_refused_is_no_reason_to_stop_whichever_ends_first(world, query, model):
    """Refusals come back faster than answers, and a search that goes on after a kill reads all of a problem's first."""
    texts = {f"q{number}": f"which day is {day} ?" for number, day in enumerate(["tue", *["mon"] * 99])}
    queries = world.table(QUERIES, [query(name, text) for name, text in texts.items()], "queries")

    def refuses(body):
        text = " ".join(WORDS[number] for number in body["prompt"])
        bad = "which day is tue" in text and not body["stop"]  # its solutions are too long
        return {"status": 400, "error": {"message": "no"}} if bad else policy_and_judge(body)

    server = FakeVllm(completions=refuses)
    server.dies_after = 150
    search = {"tokens": 20}
    with pytest.raises(ServerError):
        world.do(search_problems, key="k", **given(queries, model, TinyServers(world.work_dir, server), **search))
    server.dies_after = None
    made = world.do(search_problems, key="k", **given(queries, model, TinyServers(world.work_dir, server), **search))
    counts = world.counts(made)
    assert (counts["problems"], counts["without a solution"]) == (100, 1)
    assert counts["refused"] > 1


@pytest.mark.parametrize("strategy", ["mctsg", "sampling"])
def test_a_wrong_calculation_is_corrected_and_the_policy_goes_on(world, queries, model, strategy):
    """Also after a kill, with the same result."""

    def reckons(body):
        if "logprob_token_ids" in body:
            return policy_and_judge(body)
        known = body["prompt"].count(IDS["<|unk|>"])  # a calculation is one unknown word of the nano world
        more = [" <<1+1=3>> . <<2+2=4>> . answer : 3 .", " <<2+2=5>> . answer : 5 .", " answer : 4 ."]
        rest = more[min(2, known)] if body["prompt"][-1] != 1 else " ." + more[min(2, known)]  # 1: an unknown word
        stopped = bool(body["stop"])
        text = rest.partition(" .")[0] if stopped else rest  # vLLM cuts the stop string off
        choice = {"text": text, "finish_reason": "stop", "token_ids": [9] * 5}
        choice["stop_reason"] = " ." if stopped else None
        return {"choices": [{**choice, "index": index} for index in range(body["n"])]}

    def searched(key, dies_after=None):
        server = FakeVllm(completions=reckons)
        server.dies_after = dies_after
        own = given(queries, model, TinyServers(world.work_dir, server), strategy=strategy, tokens=20)
        return world.do(search_problems, key=key, **{**own, "sampling": SearchSampling(calculator=True)})

    made = searched("whole")
    rows = world.rows(made)
    own = [row for row in rows if row["query_id"] == "a"]
    texts = {solution_text(own, row) for row in own if row["solution"]}
    assert texts == {" <<1+1=2>> . <<2+2=4>> . answer : 4 ."}
    assert world.counts(made)["calculations corrected"] > 0
    for _ in range(10):
        try:
            again = searched("killed", dies_after=5)
        except ServerError:
            continue
        break
    assert world.rows(again) == rows
    assert world.counts(again) == world.counts(made)


@pytest.mark.parametrize("strategy", ["mctsg", "mcts", "beam"])
def test_a_delimiter_without_a_step_before_or_between_steps_kills_no_branch(world, queries, model, strategy):
    """The policy opens with delimiters, and puts two after each step. Also after a kill, with the same result."""

    def spaced(body):
        if "logprob_token_ids" in body:
            return policy_and_judge(body)
        text = " ".join(WORDS[number] for number in body["prompt"])
        written = text.rpartition("<|assistant|>")[2].rstrip()
        digit = written.rpartition("= ")[2].split(" ")[0] if "=" in written else str(2 + body["seed"] % 2)
        rest = f" . . 1 + 1 = {digit} . . answer : {digit} .".removeprefix(written)
        text = rest.partition(" .")[0] if body["stop"] else rest
        choice = {"text": text, "finish_reason": "stop", "stop_reason": " ." if body["stop"] else None}
        return {"choices": [{**choice, "index": index, "token_ids": [9]} for index in range(body["n"])]}

    def searched(key, dies_after=None):
        server = FakeVllm(completions=spaced)
        server.dies_after = dies_after
        return world.do(
            search_problems,
            key=key,
            **given(queries, model, TinyServers(world.work_dir, server), strategy=strategy, tokens=30, branches=2),
        )

    made = searched("whole")
    rows = world.rows(made)
    texts = {
        solution_text(own, row)
        for own in ([row for row in rows if row["query_id"] == name] for name in "abc")
        for row in own
        if row["solution"]
    }
    assert texts <= {f" . . 1 + 1 = {digit} . . answer : {digit} ." for digit in (2, 3)}
    counts = world.counts(made)
    assert counts["without a solution"] == 0
    assert counts["steps ended by the delimiter"] == counts["steps sampled"]
    for _ in range(30):
        try:
            again = searched("killed", dies_after=9)
        except ServerError:
            continue
        break
    assert world.rows(again) == rows
    assert world.counts(again) == counts


def test_a_policy_that_writes_only_delimiters_ends_its_search(world, queries, model):
    def only_delimiters(body):
        choice = {"text": "", "finish_reason": "stop", "stop_reason": " .", "token_ids": [9]}
        return {"choices": [{**choice, "index": index} for index in range(body["n"])]}

    servers = TinyServers(world.work_dir, FakeVllm(completions=only_delimiters))
    made = world.do(search_problems, **given(queries, model, servers, tokens=10_000, branches=1))
    assert world.counts(made)["without a solution"] == 3


def test_cut_off_solutions_stop_the_step_if_they_are_more_than_their_share(world, queries, model):
    """Finished requests are kept, and the limit is no part of the key: with a higher one, none is asked again."""

    def never_ends(body):
        found = policy_and_judge(body)
        if "logprob_token_ids" not in body and not body["stop"]:
            found["choices"] = [{**each, "finish_reason": "length"} for each in found["choices"]]
        return found

    server = FakeVllm(completions=never_ends)
    own = given(queries, model, TinyServers(world.work_dir, server), tokens=40)
    with pytest.raises(
        TruncationError, match=r"\d+ of \d+ solutions \(\d\d\.\d%\) were cut off at .*limit 10.0%: raise"
    ):
        world.do(search_problems, **{**own, "sampling": SearchSampling(max_truncated_share=0.1)})
    asked = len(server.asked)
    made = world.do(search_problems, **{**own, "sampling": SearchSampling(max_truncated_share=1)})
    assert len(server.asked) == asked
    counts = world.counts(made)
    assert 0.1 * counts["solutions sampled"] < counts["cut at solution_tokens"] < counts["solutions sampled"]


def test_a_step_that_ends_its_solution_counts_among_the_solutions_that_may_be_cut_off(world, queries, model):
    """A plain model answers in one step; the few rollouts from its other steps may all be cut off."""

    def answers_at_once(body):
        found = policy_and_judge(body)
        if "logprob_token_ids" not in body:
            for each in found["choices"]:
                if not body["stop"]:
                    each["finish_reason"] = "length"
                elif each["index"]:
                    each |= {"text": " answer : 2 .", "stop_reason": None}
        return found

    servers = TinyServers(world.work_dir, FakeVllm(completions=answers_at_once))
    counts = world.counts(world.do(search_problems, **given(queries, model, servers, tokens=40)))
    assert 0 < counts["cut at solution_tokens"] < counts["solutions sampled"] / 2
    assert counts["solutions sampled"] >= counts["solutions"] > 0
