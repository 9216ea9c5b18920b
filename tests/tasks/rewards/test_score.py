from __future__ import annotations

from itertools import chain

import pytest
from fakes import TinyServers, classifications

from infra.errors import BadInput
from infra.serving.armorm import gate_position
from infra.store.models import import_model
from infra.store.schemas import QUERIES, RESPONSES
from nano.corpus import chat
from nano.vocabulary import ASSISTANT, END, USER, encoder, tokenizer
from tasks.rewards.score import ScoreConfig, check_reward_model, judged_ids, score

INNER = "wait"  # a word that only the thoughts hold


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


def test_what_is_read_is_what_the_nano_reward_model_was_trained_on():
    assert judged_ids(tokenizer(), "which day ?", "answer : mon .") == [
        encoder()[word] for word in chat("which day ?", "answer : mon .").split()
    ]


def test_control_tokens_in_a_solution_stay_text():
    ids = judged_ids(tokenizer(), f"day {END}", f"answer : 1 . {END} {USER} good ? {ASSISTANT} yes")
    spelled = [ids.count(encoder()[token]) for token in (USER, ASSISTANT, END)]
    assert spelled == [1, 1, 2]


def test_every_row_gets_its_own_score_and_the_format_reward_is_for_the_well_formed(
    world, model, scored, response, serve
):
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


def test_equal_solutions_of_a_query_are_judged_once(world, scored, response, serve, bars):
    server = serve(classify=classifications(length))
    rows = [response(query, n, solution=f"answer : {n % 2} .") for query in ("a", "b") for n in range(6)]
    made = scored(server, [rows])
    assert sum(len(body["input"]) for body in server.asked) == 4
    assert made.rows == 12
    assert len({(row["query_id"], row["reward"]) for row in world.rows(made)}) == 2
    assert bars == {"made": 1.0}


def test_without_any_solution_nothing_is_asked(world, scored, response, serve):
    server = serve(classify=classifications(length))
    made = scored(server, [[response("a", 0, solution=None)], []])
    assert made.rows == len(server.asked) == 0
    assert world.counts(made) == {"scored": 0, "without a solution": 1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_fails_the_step(world, scored, response, serve, bad):
    with pytest.raises(ValueError, match=f"gave {bad} for query a, sample 0"):
        scored(serve(classify=classifications(lambda _: bad)), [[response("a", 0)]])
    assert not world.store.exists("made/k/manifest.json")


@pytest.mark.slow
def test_armorm_is_scored_with_by_a_process_of_its_own(world, query, response, tmp_path):
    from armo import llama3_tokenizer, make_armorm
    from test_armorm import by_hand

    folder = make_armorm(tmp_path / "armo")
    reward_model = import_model(world.store, folder, "armo")
    shards = [
        [response("a", n, solution=f"w{n % 3} w4", violations=["text_after"] if n == 3 else []) for n in range(4)],
        [response("b", 0, solution=None, violations=["missing_solution"]), response("b", 1, solution="w9")],
    ]
    asked = {"a": "w1 w2", "b": "w3 <|eot_id|>"}
    given = {
        "responses": [world.table(RESPONSES, rows, key=f"k{n}") for n, rows in enumerate(shards)],
        "queries": world.table(QUERIES, [query(name, text) for name, text in asked.items()], "queries"),
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
        ids = judged_ids(tokenizer, asked[row["query_id"]], solutions[row["query_id"], row["sample"]])
        assert row["reward"] == pytest.approx(by_hand(folder, ids, gate_position(tokenizer, ids)), rel=1e-4, abs=1e-5)
    assert [row["format_reward"] for row in rows] == [0.5, 0.5, 0.5, 0.0, 0.5]
    assert rows[0]["reward"] == rows[3]["reward"] != rows[1]["reward"]
    assert world.counts(made) == {"scored": 5, "without a solution": 1}
    assert not list((world.work_dir / "scoring").iterdir())

    long = [world.table(RESPONSES, [response("a", 0, solution="w1 " * 130)], key="long")]
    with pytest.raises(ValueError, match=r"tokens long, serving.reward.max_model_len is 128: raise it"):
        world.do(score, key="long", config=ScoreConfig(), servers=servers, **{**given, "responses": long})


def test_a_reward_model_without_a_chat_template_is_refused(world, model, tmp_path):
    check_reward_model(world.store, model)
    spoken = tokenizer()
    spoken.chat_template = None
    spoken.save_pretrained(tmp_path / "silent")
    (tmp_path / "silent" / "config.json").write_text("{}")
    silent = import_model(world.store, tmp_path / "silent", "silent")
    with pytest.raises(BadInput, match=r"reward model imported/silent-\w+: no chat template in its files .* add the"):
        check_reward_model(world.store, silent)


def test_a_right_answer_counts_where_there_is_a_reference_and_a_weight(world, model, query, response, serve):
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
    assert (counts["verified"], counts["right"]) == (2, 1)
