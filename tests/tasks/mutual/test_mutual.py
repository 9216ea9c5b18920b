"""STILL-1's tables: solutions in steps, judged solutions, what is learned from, figures, pairs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Answer, FakeVllm, TinyServers
from pydantic import ValidationError

from infra.errors import BadInput
from infra.store.schemas import CALIBRATION, JUDGED, LONGCOT, QUERIES, RESPONSES, SCORES
from nano.vocabulary import encoder
from tasks.mutual.adapt import SolvedSource, StepFormat, adapt_solutions, read_solutions
from tasks.mutual.choose import ActiveConfig, choose, choose_judged
from tasks.mutual.judge import JudgeConfig, answer_tokens, judge, mass, probability
from tasks.mutual.measure import auroc, auroc_within, calibration, figures, measure_judge
from tasks.mutual.pair import OutcomePairConfig, pair_outcomes
from tasks.responses.generate import QuarantineError

NANO = StepFormat(delimiter=" .", answer="answer :")
ASKS = JudgeConfig(template=Path("nano/prompts/judge.md"), right="yes", wrong="no")
IDS = encoder()


@pytest.fixture
def queries(world, query):
    return world.table(QUERIES, [query(name, f"which day is {name} ?") for name in "ab"], "queries")


@pytest.fixture
def responses(world, response):
    """Two right and two wrong solutions of `a`, a right one that was cut, and two wrong ones of `b`."""
    texts = [
        ("a", "1 + 1 = 2 . answer : 2 ."),
        ("a", "answer : 2 ."),
        ("a", "answer : 3 ."),
        ("a", "no"),
        ("a", "answer : 2"),
    ]
    rows = [
        response(name, n, text=text, thoughts=None, solution=text, finish_reason="length" if n == 4 else "stop")
        for n, (name, text) in enumerate([*texts, ("b", "answer : 5 ."), ("b", "answer : 5 .")])
    ]
    return world.table(RESPONSES, rows, "responses")


@pytest.fixture
def scores(world):
    plain = {"reward_model": None, "reward": 0.0, "format_reward": 0.0, "total": 0.0}
    right = {0: True, 1: True, 2: False, 3: False, 4: True, 5: False, 6: None}
    rows = [{"query_id": "a" if n < 5 else "b", "sample": n, "verified": held, **plain} for n, held in right.items()]
    return world.table(SCORES, rows, "scores")


def likely(chance: Callable[[str], float], others: float = 0.0) -> Answer:
    """vLLM's answer to a question about a solution: `chance` of "yes", by the solution's text, of what the chance of
    `others` than the two answers leaves."""
    words = {number: word for word, number in IDS.items()}

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        assert body["logprob_token_ids"] == [IDS["yes"], IDS["no"]]
        text = " ".join(words[number] for number in body["prompt"])
        p = chance(text.partition(" ? ")[2].partition(" is this ok ?")[0])
        log_probs = {f"token_id:{IDS['yes']}": math.log(p), f"token_id:{IDS['no']}": math.log(1 - p)}
        log_probs = {name: each + math.log1p(-others) for name, each in log_probs.items()}
        choice = {"index": 0, "text": " yes", "finish_reason": "length", "token_ids": [IDS["yes"]]}
        return {"choices": [{**choice, "logprobs": {"top_logprobs": [log_probs]}}]}

    return answer


def test_only_solutions_in_steps_are_learned_and_without_thoughts(world):
    texts = ["1 + 1 = 2 . answer : 2 .", "answer : 2 . wait .", "answer : 2 .", "answer : 2 .", "no"]
    rows = [{"query_id": "a", "sample": n, "solution": text} for n, text in enumerate(texts)]
    common = {"query": "1 + 1 ?", "thoughts": "plan .", "format": "bolt", "reward": 1.0}
    longcot = world.table(LONGCOT, [{**row, **common} for row in rows], "longcot")
    made = world.do(adapt_solutions, format=NANO, longcot=longcot)
    assert [(row["solution"], row["thoughts"], row["format"]) for row in world.rows(made)] == [
        ("1 + 1 = 2 . answer : 2 .", "", "plain"),
        ("answer : 2 .", "", "plain"),
    ]
    dropped = {"dropped: answer_before_the_end": 1, "dropped: duplicate": 1, "dropped: missing_answer": 1}
    assert world.counts(made) == {"read": 5, "kept": 2, **dropped}
    with pytest.raises(BadInput, match=r"no solution is in the step format .*set steps.delimiter and steps.answer"):
        world.do(adapt_solutions, key="2", format=StepFormat(), longcot=longcot)


def test_given_solutions_are_read_for_the_mined_queries_alone(world, query, tmp_path):
    rows = [
        {"problem": "1 + 1 ?", "solution": "Add.\n\nIt is \\boxed{2}."},
        {"problem": "1 + 1 ?", "solution": None},
        {"problem": "2 + 2 ?", "solution": "It is \\boxed{4}."},
        {"problem": " ", "solution": "x"},
    ]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SolvedSource(path=str(tmp_path / "given.jsonl"), column="problem")
    from tasks.queries.identity import query_id

    mined = world.table(QUERIES, [query(query_id("1 + 1 ?"), "1 + 1 ?")], "queries")
    made = world.do(read_solutions, format=StepFormat(), sources=[source], queries=mined)
    assert [row["solution"] for row in world.rows(made)] == ["Add.\n\nIt is \\boxed{2}."]
    not_kept = {"dropped: the query was not kept by mining": 1, "dropped: empty": 1}
    assert world.counts(made) == {"read": 4, "kept": 1, "dropped: no_steps": 1, **not_kept}
    named = source.model_copy(update={"solution": "answer"})
    with pytest.raises(BadInput, match=r"row 0: expected a field answer: set `solution`"):
        world.do(read_solutions, key="2", format=StepFormat(), sources=[named], queries=mined)


def test_a_solution_is_judged_by_the_first_token_of_the_answer(world, queries, responses, scores, model):
    server = FakeVllm(completions=likely(lambda text: 0.9 if "2 ." in text else 0.2))
    servers = TinyServers(world.work_dir, server)
    given = {"config": ASKS, "responses": [responses], "scores": scores, "queries": queries, "servers": servers}
    made = world.do(judge, model=model, **given)
    found = [(row["sample"], row["right"], row["probability"]) for row in world.rows(made)]
    assert [each[:2] for each in found] == [(0, True), (1, True), (2, False), (3, False), (5, False)]
    assert [each[2] for each in found] == pytest.approx([0.9, 0.9, 0.2, 0.2, 0.2])
    counts = {"right": 2, "wrong": 3, "cut off": 1, "not judged": 0, "mean mass": pytest.approx(1)}
    assert world.counts(made) == counts
    without = world.do(judge, key="2", model=None, **given)
    assert {row["probability"] for row in world.rows(without)} == {None}
    assert world.counts(without) == {"right": 2, "wrong": 3, "cut off": 1, "not judged": 5}
    assert [len(body["prompt"]) for body in server.asked] == [5]


def test_a_model_that_begins_with_neither_answer_is_told(world, queries, responses, scores, model, caplog):
    given = {"config": ASKS, "responses": [responses], "scores": scores, "queries": queries, "model": model}
    for others, told in ((0.4, False), (0.99, True)):
        servers = TinyServers(world.work_dir, FakeVllm(completions=likely(lambda _: 0.8, others)))
        made = world.do(judge, key=f"{others}", **given, servers=servers)
        assert world.counts(made)["mean mass"] == pytest.approx(1 - others)
        assert ("'yes' and 'no' have 0.01 of the probability" in caplog.text) is told
        assert ("set judge.right and judge.wrong to the words that it begins with" in caplog.text) is told
    assert mass((-9999.0, math.log(0.25))) == pytest.approx(0.25)


def test_solutions_that_were_cut_off_are_neither_right_nor_wrong(world, queries, response, model):
    """Whatever their text gives: the step never asks about them, labels them, or trains on them."""
    rows = [
        response("a", n, text=text, thoughts=None, solution=text, finish_reason=reason)
        for n, (text, reason) in enumerate([("answer : 2 .", "stop"), ("answer : 2", "length"), ("1 + 1", "length")])
    ]
    responses = world.table(RESPONSES, rows, "responses")
    plain = {"query_id": "a", "reward_model": None, "reward": 0.0, "format_reward": 0.0, "total": 0.0}
    verified = [{**plain, "sample": n, "verified": n < 2} for n in range(3)]
    servers = TinyServers(world.work_dir, FakeVllm(completions=likely(lambda _: 0.5)))
    given = {"responses": [responses], "queries": queries}
    scored = world.table(SCORES, verified, "scores")
    made = world.do(judge, config=ASKS, scores=scored, model=model, servers=servers, **given)
    assert [row["sample"] for row in world.rows(made)] == [0]
    assert world.counts(made) == {"right": 1, "wrong": 0, "cut off": 2, "not judged": 0, "mean mass": pytest.approx(1)}
    chosen = world.do(choose_judged, name="chosen", config=ActiveConfig(), judge=ASKS, judged=made, **given)
    assert world.counts(chosen) == {"different": 1, "right": 1, "wrong": 0, "chosen": 0}


def test_refused_solutions_are_counted_and_too_many_stop_the_step(world, queries, responses, scores, model):
    refused = likely(lambda _: 0.5)

    def answer(body):
        long = len(body["prompt"]) > 18
        return {"status": 400, "error": {"message": "too long"}} if long else refused(body)

    servers = TinyServers(world.work_dir, FakeVllm(completions=answer))
    given = {"responses": [responses], "scores": scores, "queries": queries, "model": model, "servers": servers}
    made = world.do(judge, config=ASKS, **given)
    assert world.rows(made)[0]["probability"] is None
    assert world.counts(made)["not judged"] == 1
    servers = TinyServers(world.work_dir, FakeVllm(completions=lambda _: {"status": 400, "error": {"message": "no"}}))
    with pytest.raises(QuarantineError, match=r"5 of 5 solutions were not judged, limit 1.0%; the first is [ab]-\d"):
        world.do(judge, key="2", config=ASKS, **{**given, "servers": servers})


def test_answers_that_cannot_be_told_apart_are_refused():
    class Tokenizer:
        unk_token_id = 0

        def encode(self, text, add_special_tokens):
            return {"yes": [1], "yesterday": [1, 2], "no": [3], "never": [0]}[text]

    assert answer_tokens(Tokenizer(), JudgeConfig(right="yes", wrong="no")) == (1, 3)
    with pytest.raises(BadInput, match="begin with the same token"):
        answer_tokens(Tokenizer(), JudgeConfig(right="yes", wrong="yesterday"))
    with pytest.raises(BadInput, match=r"judge.wrong: 'never' is no word of the model's vocabulary"):
        answer_tokens(Tokenizer(), JudgeConfig(right="yes", wrong="never"))
    with pytest.raises(ValidationError, match="the two answers must differ"):
        JudgeConfig(right="yes", wrong=" yes")
    assert probability((math.log(0.3), math.log(0.1))) == pytest.approx(0.75)
    assert probability((-9999.0, 0.0)) == pytest.approx(0, abs=1e-300)


def judged(*rows: tuple[bool, float | None]) -> list[dict[str, Any]]:
    return [{"query_id": "q", "sample": n, "right": right, "probability": p} for n, (right, p) in enumerate(rows)]


def test_the_reward_model_learns_from_its_errors_as_many_right_as_wrong():
    rows = judged((True, 0.9), (True, 0.1), (True, 0.5), (False, 0.8), (False, 0.05), (False, 0.45))
    samples = {
        by: [row["sample"] for row in choose(rows, ActiveConfig(by=by, limit=2))] for by in ("error", "uncertainty")
    }
    assert samples == {"error": [1, 3], "uncertainty": [2, 5]}
    assert len(choose(rows, ActiveConfig(limit=100))) == 6
    assert choose(rows[:3], ActiveConfig()) == []
    first = choose(judged(*[(n % 2 == 0, None) for n in range(40)]), ActiveConfig(limit=10))
    assert Counter(row["right"] for row in first) == {True: 5, False: 5}
    assert [row["sample"] for row in first][:5] != [0, 2, 4, 6, 8]  # at random
    unread = judged((True, None), (True, 0.6), (False, None), (False, 0.4))
    for by in ("error", "uncertainty"):  # what could not be judged comes last
        assert [row["sample"] for row in choose(unread, ActiveConfig(by=by, limit=2))] == [1, 3]


def test_solutions_of_a_single_step_each_mean_another_delimiter(world):
    rows = [{"query_id": f"q{n}", "sample": 0, "solution": f"a\r\nb {n}\r\n\\boxed{{1}}"} for n in range(12)]
    longcot = world.table(
        LONGCOT, [{**row, "query": "q", "thoughts": "t", "format": "bolt", "reward": 1.0} for row in rows]
    )
    with pytest.raises(BadInput, match=r"each of 12 solutions is a single step, .*set steps.delimiter"):
        world.do(adapt_solutions, format=StepFormat(), longcot=longcot)
    made = world.do(adapt_solutions, key="2", format=StepFormat(delimiter="\n"), longcot=longcot)
    assert world.rows(made)[0]["solution"] == "a\nb 0\n\\boxed{1}"


def test_what_is_learned_from_are_questions_with_their_answers(world, queries, responses):
    rows = [{"query_id": "a", "sample": n, "right": n in (0, 1), "probability": None} for n in range(4)]
    rows += [{"query_id": "b", "sample": n, "right": False, "probability": None} for n in (5, 6)]  # the same text
    table = world.table(JUDGED, rows, "judged")
    given = {"judge": ASKS, "responses": [responses], "queries": queries}
    made = world.do(choose_judged, config=ActiveConfig(), judged=table, **given)
    found = {(row["query"], row["solution"], row["format"]) for row in world.rows(made)}
    assert ("which day is a ? 1 + 1 = 2 . answer : 2 . is this ok ?", "yes", "plain") in found
    assert Counter(answer for _, answer, _ in found) == {"yes": 2, "no": 2}
    assert world.counts(made) == {"different": 5, "right": 2, "wrong": 3, "chosen": 4}
    alone = world.table(JUDGED, rows[2:], "judged", "wrong")
    none = world.do(choose_judged, key="2", config=ActiveConfig(), judged=alone, **given)
    assert world.rows(none) == []
    assert world.counts(none) == {"different": 3, "right": 0, "wrong": 3, "chosen": 0}


def test_figures_of_a_reward_model_are_those_worked_by_hand(world, query):
    """Of the four pairs of a right and a wrong solution, three are in order and one is tied."""
    probabilities, right = [0.9, 0.6, 0.6, 0.1], [True, True, False, False]
    assert auroc(probabilities, right) == pytest.approx(3.5 / 4)
    assert math.isnan(auroc([0.5], [True]))
    rows = calibration(probabilities, right)
    assert [(row["low"], row["solutions"], row["right"]) for row in rows] == [
        (0.1, 1, 0.0),
        (0.6, 2, 0.5),
        (0.9, 1, 1.0),
    ]
    found = figures(probabilities, right)
    assert found["accuracy"] == 0.75
    assert found["calibration_error"] == pytest.approx((0.1 + 2 * 0.1 + 0.1) / 4)
    assert calibration([1.0], [True])[0]["high"] == 1.0
    table = world.table(JUDGED, judged((True, 0.9), (False, 0.2), (False, None)), "judged")
    asked = [{**query("q", "which ?"), "topic": "days"}]
    queries = world.table(QUERIES, asked, "asked")
    made = world.do(measure_judge, judged=table, queries=queries)
    assert world.counts(made)["by_topic"]["days"]["auroc"] == 1.0
    assert world.counts(made)["by_topic"]["days"]["solutions"] == 2
    assert world.counts(made)["solutions"] == 2
    assert world.counts(made)["auroc"] == world.counts(made)["auroc_within"] == 1.0
    assert world.rows(made)[0].keys() == set(CALIBRATION.names)
    with pytest.raises(BadInput, match="none of 1 whole held-out solutions was judged"):
        world.do(
            measure_judge, key="2", judged=world.table(JUDGED, judged((True, None)), "judged", "2"), queries=queries
        )


def test_a_reward_model_that_only_knows_hard_questions_is_at_chance_within_them():
    easy = [{"query_id": "easy", "right": right, "probability": 0.9} for right in (True, True, True, False)]
    hard = [{"query_id": "hard", "right": right, "probability": 0.1} for right in (True, False, False, False)]
    alike = [{"query_id": "all wrong", "right": False, "probability": 0.1}]
    rows = [*easy, *hard, *alike]
    assert auroc([row["probability"] for row in rows], [row["right"] for row in rows]) > 0.7
    assert auroc_within(rows) == 0.5
    assert auroc_within(alike) is None


def test_the_likeliest_right_sample_is_chosen_over_the_likeliest_wrong_one(world, queries, responses, model):
    chances = {0: 0.5, 1: 0.8, 2: 0.7, 3: 0.1}  # sample 4 was cut off
    rows = [{"query_id": "a", "sample": n, "right": n in (0, 1), "probability": p} for n, p in chances.items()]
    rows.append({"query_id": "b", "sample": 5, "right": False, "probability": 0.5})
    table = world.table(JUDGED, rows, "judged")
    given = {"format": NANO, "iteration": 2, "responses": [responses], "queries": queries, "model": model}
    given |= {"servers": TinyServers(world.work_dir)}
    made = world.do(pair_outcomes, config=OutcomePairConfig(), judged=table, **given)
    (found,) = world.rows(made)
    assert (found["chosen_sample"], found["rejected_sample"], found["iteration"]) == (1, 2, 2)
    assert (found["chosen"], found["rejected"]) == ("answer : 2 .", "answer : 3 .")
    assert (found["chosen_score"], found["rejected_score"]) == (0.8, 0.7)
    left_out = {"samples cut at max_tokens, or not judged": 2}
    assert world.counts(made) == {"queries": 2, "kept": 1, "dropped: no right sample": 1, **left_out}
    none = world.do(pair_outcomes, key="2", config=OutcomePairConfig(min_probability=0.9), judged=table, **given)
    assert world.rows(none) == []
    assert world.counts(none) == {"queries": 2, "dropped: no right sample": 2, **left_out}
