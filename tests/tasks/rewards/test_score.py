from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
from fakes import TinyServers, classifications

import tasks.rewards.score
from infra.errors import BadInput
from infra.serving.armorm import gate_position, part_count, rewards_path
from infra.store.models import import_model
from infra.store.schemas import QUERIES, RESPONSES
from nano.corpus import chat
from nano.vocabulary import ASSISTANT, END, USER, encoder, tokenizer
from tasks.rewards.join import join_scores
from tasks.rewards.score import (
    Batch,
    ScoreConfig,
    armorm_rewards,
    batches_of,
    references_of,
    reward_input_ids,
    score,
    score_row,
    score_rows,
    served_rewards,
    share_computed,
    verifier,
)

INNER = "wait"  # a word that occurs only in the thoughts


def length(ids: list[int]) -> float:
    return float(len(ids)) / 4


@pytest.fixture
def scored(world, model, query):
    """Score shards of responses to the queries a and b."""
    queries = world.table(QUERIES, [query("a", "which day ?"), query("b", "who is older ?")], "queries")

    def run(server, shards, config=None, key="k"):
        tables = [world.table(RESPONSES, rows, key=f"{key}{n}") for n, rows in enumerate(shards)]
        inputs = {"responses": tables, "queries": queries, "reward_model": model}
        servers = TinyServers(world.work_dir, server)
        return world.do(
            score, key=key, inputs={"reward_model": model}, config=config or ScoreConfig(), servers=servers, **inputs
        )

    return run


def test_thoughts_never_reach_the_reward_model(world, scored, response, serve):
    server = serve(classify=classifications(length))
    rows = [response("a", n, thoughts=f"goal {INNER} {INNER}", text=f"{INNER} {n}") for n in range(40)]
    made = scored(server, [rows])
    reading, ids = tokenizer(), encoder()
    sent = [item for body in server.asked for item in body["input"]]
    assert len(sent) == made.rows == 40
    assert all(ids[INNER] not in item for item in sent)
    assert all(body["use_activation"] is False for body in server.asked)
    texts = [reading.decode(item) for item in sent]
    assert sorted(texts) == sorted(f"{USER} which day ? {END} {ASSISTANT} answer : {n} . {END}" for n in range(40))


def test_the_input_has_the_form_that_the_nano_reward_model_was_trained_on():
    assert reward_input_ids(tokenizer(), "which day ?", "answer : mon .") == [
        encoder()[word] for word in chat("which day ?", "answer : mon .").split()
    ]


def test_control_tokens_in_a_solution_stay_text():
    ids = reward_input_ids(tokenizer(), f"day {END}", f"answer : 1 . {END} {USER} good ? {ASSISTANT} yes")
    spelled = [ids.count(encoder()[token]) for token in (USER, ASSISTANT, END)]
    assert spelled == [1, 1, 2]


def test_every_row_gets_its_own_score_and_well_formed_ones_the_format_reward(world, model, scored, response, serve):
    shards = [
        [
            response("a", 0, solution="answer : 1 ."),
            response("a", 1, solution=None, violations=["missing_solution"]),
            response("a", 2, solution="answer : 1 2 3 .", violations=["text_after"]),
        ],
        [response("b", 0, solution="answer", finish_reason="length"), response("b", 1, solution="answer : 1 2 .")],
    ]
    made = scored(serve(classify=classifications(length)), shards, ScoreConfig(format_weight=0.5))
    found = {(row["query_id"], row["sample"]): row for row in world.rows(made)}
    assert set(found) == {("a", 0), ("a", 2), ("b", 0), ("b", 1)}
    prompt = 1 + 3 + 1 + 1 + 1  # user, three words, end, assistant, and the end of the solution
    assert [found[key]["reward"] for key in found] == [
        (prompt + 4) / 4,
        (prompt + 6) / 4,
        (prompt + 2) / 4,
        (prompt + 6) / 4,
    ]
    assert [found[key]["format_reward"] for key in found] == [0.5, 0.0, 0.0, 0.5]
    assert all(row["total"] == row["reward"] + row["format_reward"] for row in found.values())
    assert {row["reward_model"] for row in found.values()} == {model.key}
    assert world.counts(made) == {"scored": 4, "without a solution": 1}


def test_equal_solutions_of_a_query_are_scored_once(world, scored, response, serve, bars):
    server = serve(classify=classifications(length))
    rows = [response(query, n, solution=f"answer : {n % 2} .") for query in ("a", "b") for n in range(6)]
    made = scored(server, [rows])
    assert sum(len(body["input"]) for body in server.asked) == 4
    assert made.rows == 12
    assert len({(row["query_id"], row["reward"]) for row in world.rows(made)}) == 2
    assert bars == {"made": 1.0}


def test_shards_give_together_what_one_pass_gives(world, model, query, response, serve):
    queries = world.table(QUERIES, [query(name, reference="3") for name in "abc"], "queries")
    sizes, given = (5, 0, 8), {"queries": queries, "reward_model": model}
    rows = [[response("abc"[n % 3], 10 * m + n, solution=f"answer : {n}") for n in range(m)] for m in sizes]
    given |= {"responses": [world.table(RESPONSES, each, key=str(n)) for n, each in enumerate(rows)]}
    given |= {"config": ScoreConfig(verified_weight=1, verifier="everyday", in_flight=2)}

    def run(key, **shard):
        servers = TinyServers(world.work_dir, serve(classify=classifications(length)))
        return world.do(score, "rewards", key, inputs={"reward_model": model}, servers=servers, **given, **shard)

    whole, parts = run("whole"), [run(str(n), shard=n, shards=3) for n in range(3)]
    assert [part.rows for part in parts] == [4, 4, 5]
    joined = world.do(join_scores, "scores", rewards=parts)
    assert world.rows(joined) == world.rows(whole)
    assert (
        world.counts(joined)
        == world.counts(whole)
        == {"scored": 13, "without a solution": 0, "verified": 13, "correct": 2}
    )
    assert [path for path in world.store.list() if path.startswith("ledgers")] == []


def test_without_any_solution_nothing_is_sent(world, scored, response, serve):
    server = serve(classify=classifications(length))
    made = scored(server, [[response("a", 0, solution=None)], []])
    assert made.rows == len(server.asked) == 0
    assert world.counts(made) == {"scored": 0, "without a solution": 1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_fails_the_step(world, scored, response, serve, bad):
    with pytest.raises(ValueError, match=f"gave {bad} for query a, sample 0"):
        scored(serve(classify=classifications(lambda _: bad)), [[response("a", 0)]])
    assert not world.store.exists("made/k/manifest.json")


@pytest.mark.slow
def test_armorm_scores_in_a_process_of_its_own(world, query, response, tmp_path):
    from armo import llama3_tokenizer, make_armorm, reference_reward

    folder = make_armorm(tmp_path / "armo")
    reward_model = import_model(world.store, folder, "armo")
    shards = [
        [response("a", n, solution=f"w{n % 3} w4", violations=["text_after"] if n == 3 else []) for n in range(4)],
        [response("b", 0, solution=None, violations=["missing_solution"]), response("b", 1, solution="w9")],
    ]
    texts = {"a": "w1 w2", "b": "w3 <|eot_id|>"}
    given = {
        "responses": [world.table(RESPONSES, rows, key=f"k{n}") for n, rows in enumerate(shards)],
        "queries": world.table(QUERIES, [query(name, text) for name, text in texts.items()], "queries"),
        "reward_model": reward_model,
    }
    servers = TinyServers(world.work_dir)
    made = world.do(
        score, inputs={"reward_model": reward_model}, config=ScoreConfig(format_weight=0.5), servers=servers, **given
    )
    tokenizer = llama3_tokenizer()
    rows = world.rows(made)
    assert [(row["query_id"], row["sample"]) for row in rows] == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 1)]
    solutions = {(r["query_id"], r["sample"]): r["solution"] for r in chain(*shards)}
    for row in rows:
        ids = reward_input_ids(tokenizer, texts[row["query_id"]], solutions[row["query_id"], row["sample"]])
        assert row["reward"] == pytest.approx(
            reference_reward(folder, ids, gate_position(tokenizer, ids)), rel=1e-4, abs=1e-5
        )
    assert [row["format_reward"] for row in rows] == [0.5, 0.5, 0.5, 0.0, 0.5]
    assert rows[0]["reward"] == rows[3]["reward"] != rows[1]["reward"]
    assert world.counts(made) == {"scored": 5, "without a solution": 1}
    assert not list((world.work_dir / "scoring").iterdir())


def test_solutions_too_long_for_the_reward_model_get_no_score_and_are_counted(world, scored, response, serve):
    rows = [response("a", n, solution="answer " * (200 if n == 3 else n + 1)) for n in range(8)]
    server = serve(classify=classifications(length))
    made = scored(server, [rows], ScoreConfig(max_too_long_share=0.125))
    assert [row["sample"] for row in world.rows(made)] == [0, 1, 2, 4, 5, 6, 7]
    assert [row["reward"] for row in world.rows(made)][2:4] == [(7 + 3) / 4, (7 + 5) / 4]
    assert world.counts(made) == {"scored": 7, "without a solution": 0, "too long for the reward model": 1}
    assert all(len(item) <= 128 for body in server.asked for item in body["input"])
    with pytest.raises(
        BadInput, match=r"1 of 8 responses are, .*serving\.reward\.max_model_len\), limit 12\.0%: raise it"
    ):
        scored(server, [rows], ScoreConfig(max_too_long_share=0.12), key="stricter")


def test_a_correct_answer_counts_if_there_is_a_reference_and_a_weight(world, model, query, response, serve):
    queries = world.table(QUERIES, [query("a", "what is 1/2 ?", reference="0.5"), query("b", "who ?")], "queries")
    solutions = {"a": [r"it is \boxed{\frac{1}{2}}", r"it is \boxed{2}"], "b": [r"it is \boxed{0.5}"]}
    rows = [response(q, n, solution=text) for q, texts in solutions.items() for n, text in enumerate(texts)]
    responses = [world.table(RESPONSES, rows)]

    def run(key, config):
        server = serve(classify=classifications(lambda ids: 1.0))
        inputs = {"responses": responses, "queries": queries, "reward_model": model}
        made = world.do(
            score,
            key=key,
            inputs={"reward_model": model},
            config=config,
            servers=TinyServers(world.work_dir, server),
            **inputs,
        )
        return world.rows(made), world.counts(made)

    plain, counts = run("plain", ScoreConfig())
    assert [(row["reward"], row["verified"]) for row in plain] == [(1.0, None)] * 3
    assert "verified" not in counts
    weighted, counts = run("weighted", ScoreConfig(verified_weight=4, format_weight=0.5))
    assert [(row["reward"], row["total"], row["verified"]) for row in weighted] == [
        (5.0, 5.5, True),
        (1.0, 1.5, False),
        (1.0, 1.5, None),
    ]
    assert (counts["verified"], counts["correct"]) == (2, 1)


# ---- its parts


def test_responses_are_streamed_in_batches_without_those_that_have_no_solution(world, response):
    shards = [
        [response("a", 0), response("a", 1, solution=None)],
        [],
        [response("b", 0), response("b", 1, solution="")],
    ]
    found = list(batches_of(world.store, [world.table(RESPONSES, rows, key=f"k{n}") for n, rows in enumerate(shards)]))
    assert [[(row["query_id"], row["sample"]) for row in batch.rows] for batch in found if batch.rows] == [
        [("a", 0)],
        [("b", 0)],
    ]
    assert sum(batch.without for batch in found) == 2


def test_a_batchs_answers_are_distinct_and_in_order(response):
    rows = [response("b", 0, solution="x"), response("a", 0, solution="x"), response("b", 1, solution="x")]
    assert Batch(rows, 0).answers == [("b", "x"), ("a", "x")]


def test_only_queries_with_a_reference_are_verified(world, query, response):
    rows = [query("a", reference="0.5"), query("b"), query("c", reference=""), query("d", reference="7")]
    asked = world.table(RESPONSES, [response(name, n) for name in "abc" for n in range(2)])
    assert references_of(world.store, world.table(QUERIES, rows, "queries"), [asked]) == {"a": "0.5", "c": ""}


def test_rows_get_the_reward_of_their_answer_and_verified_ones_more(model, response):
    batches = [
        Batch([response("a", 0, solution="x"), response("a", 1, solution="y"), response("b", 0, solution="x")], 1),
        Batch([], 2),
        Batch([response("a", 2, solution="x")], 0),
    ]
    counts = {"scored": 0, "without a solution": 0, "verified": 0, "correct": 0}
    config = ScoreConfig(verified_weight=10)
    rewards = [[1.0, 2.0, 3.0], [], [4.0]]
    found = score_rows(
        batches, rewards, {"a": "x"}, lambda solution, reference: solution == reference, model, config, counts
    )
    rows = [(row["query_id"], row["sample"], row["reward"], row["verified"]) for rows in found for row in rows]
    assert rows == [("a", 0, 11.0, True), ("a", 1, 2.0, False), ("b", 0, 3.0, None), ("a", 2, 14.0, True)]
    assert counts == {"scored": 4, "without a solution": 3, "verified": 3, "correct": 2}
    for wrong in (rewards[:2], [[1.0], [], []]):
        with pytest.raises(ValueError, match="zip"):
            list(score_rows(batches, wrong, {}, bool, model, config, counts))


def test_a_row_adds_up(model, response):
    config = ScoreConfig(format_weight=0.5, verified_weight=2)
    well_formed, malformed = response("q", 3), response("q", 4, violations=["text_after"])
    row = score_row(well_formed, 1.0, True, model, config)
    assert (row["reward"], row["format_reward"], row["total"], row["verified"]) == (3.0, 0.5, 3.5, True)
    assert (row["query_id"], row["sample"], row["reward_model"]) == ("q", 3, model.key)
    row = score_row(malformed, 1.0, None, model, config)
    assert (row["reward"], row["format_reward"], row["total"], row["verified"]) == (1.0, 0.0, 1.0, None)
    with pytest.raises(ValueError, match=r"gave -inf for query q, sample 3: expected a finite number"):
        score_row(well_formed, float("-inf"), None, model, config)


def test_the_verifier_compares_mathematical_answers():
    with verifier("math500") as verify:
        assert verify(r"so \boxed{\frac{1}{2}}", "0.5") is True
        assert verify(r"so \boxed{2}", "0.5") is False


def test_a_worlds_own_verifier_can_compare_the_answers():
    with verifier("everyday") as verify:
        assert verify("It is a Friday.", "Friday") is True
        assert verify("4 times 3 is 12 dollars.", "13") is False


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_without_a_reward_model_a_correct_answer_is_the_reward(world, query, response, weight):
    answers = [("a", 0, "12"), ("a", 1, "It is 13."), ("b", 0, "12"), ("a", 2, None)]
    rows = [
        response(name, n, solution=text, violations=[] if text else ["missing_solution"]) for name, n, text in answers
    ]
    queries = [{**query("a"), "reference": "12"}, {**query("b"), "reference": None}]
    made = world.do(
        score,
        config=ScoreConfig(verified_weight=weight, verifier="everyday", format_weight=0.5),
        responses=[world.table(RESPONSES, rows, "responses")],
        queries=world.table(QUERIES, queries, "queries"),
        reward_model=None,
        servers=TinyServers(world.work_dir),  # none is started
    )
    found = [(row["query_id"], row["sample"], row["reward"], row["total"], row["verified"]) for row in world.rows(made)]
    assert found == [("a", 0, weight, weight + 0.5, True), ("a", 1, 0.0, 0.5, False), ("b", 0, 0.0, 0.5, None)]
    assert {row["reward_model"] for row in world.rows(made)} == {None}
    assert world.counts(made) == {"scored": 3, "without a solution": 1, "verified": 2, "correct": 1}


def test_served_rewards_come_batch_by_batch_and_what_a_killed_step_had_is_not_asked_again(world, model, serve):
    batches = [[[1, 2], [3]], [], [[4, 5, 6, 7]]]

    def rewards(server):
        servers = TinyServers(world.work_dir, server)
        return served_rewards(iter(batches), model, ScoreConfig(in_flight=1), world.store, "ledgers/kept", servers)

    first = serve(classify=classifications(length))
    killed = rewards(first)
    assert [next(killed), next(killed)] == [[0.5, 0.25], []]
    killed.close()
    second = serve(classify=classifications(length))
    assert list(rewards(second)) == [[0.5, 0.25], [], [1.0]]
    assert [body["input"] for body in second.asked] == [[[4, 5, 6, 7]]]
    assert list(rewards(None)) == [[0.5, 0.25], [], [1.0]]  # no server is started


def test_rewards_that_are_not_finite_are_not_kept(world, model, serve):
    def rewards(reward):
        servers = TinyServers(world.work_dir, serve(classify=classifications(lambda _: reward)))
        return list(served_rewards(iter([[[1]]]), model, ScoreConfig(), world.store, "ledgers/kept", servers))

    assert math.isnan(rewards(float("nan"))[0][0])
    assert rewards(0.5) == [[0.5]]


def test_armorm_reads_all_sequences_before_the_first_reward_comes(world, tmp_path, monkeypatch):
    parts, folder = tmp_path / "parts", tmp_path / "model"

    def score_parts(config, *, ranks):
        assert (config.model, config.parts, part_count(config.parts), ranks) == (folder, parts, 2, 1)
        for number in range(2):
            assert share_computed(parts) == number / 2
            np.save(rewards_path(parts, number), np.array([number + 0.5] * (2 - number)))

    monkeypatch.setattr(tasks.rewards.score, "gate_position", lambda _tokenizer, ids: len(ids) - 1)
    monkeypatch.setattr(tasks.rewards.score, "score_parts", score_parts)
    assert share_computed(parts) == 0.0
    found = armorm_rewards(iter([[[1, 2], [3]], [[4]]]), None, folder, parts, TinyServers(world.work_dir))
    assert list(found) == [[0.5, 0.5], [1.5]]
    assert share_computed(parts) == 1.0
