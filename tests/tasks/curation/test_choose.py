"""Which candidates become the table `examples`; the examples that this project ships pass all checks."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from fakes import TinyServers, classifications

from infra.errors import BadInput
from infra.settings import PROJECT_ROOT
from infra.store.models import fetch_model
from infra.text.chat import load_tokenizer
from nano.vocabulary import encoder
from tasks.curation.choose import Room, choose_examples, reject_held_out
from tasks.examples.read import ExamplesConfig, candidates, checked, remaining
from tasks.queries.overlap import near_duplicates
from tasks.responses.prompt import PromptConfig, in_context_text

SHIPPED = PROJECT_ROOT / "prompts" / "examples"
BENCH = PROJECT_ROOT.parent / "shared" / "bench"
PROMPT = PromptConfig(
    template=PROJECT_ROOT / "prompts" / "in_context.md", example_template=PROJECT_ROOT / "prompts" / "example.md"
)
WORDS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
THOUGHTS = "I need to find {0} and {0}. My plan is {0} or {1} by {0}. Alternatively {1} {0}. Wait , check {1} {1} ."


def written(folder: Path, *changes: dict[str, Any]) -> Path:
    """A table of candidates c0, c1, ... that resemble each other only in their `changes`."""
    rows = [
        {
            "example_id": f"c{n}",
            "query": f"which {WORDS[n]} is {n} and {n + 10} ?",
            "thoughts": THOUGHTS.format(f"word{n}", f"other{n}"),
            "solution": f"answer : {' '.join(WORDS[: n + 1])} {n} .",
            "topic": f"topic {n}",
            **change,
        }
        for n, change in enumerate(changes)
    ]
    path = folder / "candidates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def choose(world, model, tmp_path):
    """The step over candidates with changes; keywords are the configuration's, or the step's own."""

    def run(*changes: dict[str, Any], server=None, room=None, reward=False, **config):
        given = ExamplesConfig(**{"path": written(tmp_path, *changes), "min_words": 1, "count": 2, **config})
        ref = world.do(
            choose_examples,
            key=str(len(list(tmp_path.glob("world/store/made/*")))),
            config=given,
            servers=TinyServers(world.work_dir, server),
            model=model if room else None,
            room=room,
            reward_model=model if reward else None,
        )
        return world.rows(ref), world.counts(ref)

    return run


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["example_id"] for row in rows]


def why(counts: dict[str, Any]) -> dict[str, str]:
    return {
        each["example_id"]: f"{each['rejected']}: {each['why']}" for each in counts["candidates"] if each["rejected"]
    }


def test_the_table_holds_what_is_taken_and_the_manifest_describes_all(choose):
    rows, counts = choose({}, {"thoughts": "It is 7."}, {"author": "Ada", "licence": "MIT"}, {})
    assert ids(rows) == ["c0", "c2"]
    assert rows[0] == {
        "example_id": "c0",
        "query": "which mon is 0 and 10 ?",
        "thoughts": THOUGHTS.format("word0", "other0"),
        "solution": "answer : mon 0 .",
        "topic": "topic 0",
        "actions": ["analysis", "branching", "planning", "reflection"],
    }
    funnel = {name: value for name, value in counts.items() if name != "candidates"}
    assert funnel == {
        "read": 4,
        "rejected: too few actions": 1,
        "rejected: not needed": 1,
        "taken": 2,
        "topics": {"topic 0": 1, "topic 2": 1},
    }
    found = counts["candidates"][2]
    assert (found["author"], found["licence"], found["rejected"], found["words"]) == ("Ada", "MIT", None, 24)
    assert found["evidence"]["planning"]["quote"].startswith(
        "I need to find word2 and word2. My plan is word2 or other2"
    )
    assert "thoughts" not in found


def test_the_table_can_be_the_candidates_of_another_run(choose, tmp_path):
    rows, _ = choose({}, {}, {})
    path = tmp_path / "world" / "store" / "made" / "0" / "part-00000.parquet"
    again, counts = choose(path=path)
    assert again == rows
    assert counts["read"] == 2


def test_the_reward_model_ranks_by_query_and_solution_alone(choose, serve):
    server = serve(classify=classifications(lambda ids: float(len(ids))))
    rows, counts = choose({}, {"thoughts": "It is 7."}, {}, {}, server=server, reward=True)
    assert ids(rows) == ["c2", "c3"]  # longer solutions; in the candidates' order
    rewards = {each["example_id"]: each["reward"] for each in counts["candidates"]}
    assert rewards["c1"] is None  # already rejected: not scored
    assert rewards["c0"] < rewards["c2"] < rewards["c3"]
    sent = [item for body in server.asked for item in body["input"]]
    assert len(sent) == 3
    assert not any(encoder()["check"] in item for item in sent)  # a word that only the thoughts hold


def test_a_reward_that_is_not_finite_fails_the_step(choose, serve):
    server = serve(classify=classifications(lambda _: float("nan")))
    with pytest.raises(ValueError, match="the reward model gave nan for example c0, not a finite number"):
        choose({}, {}, server=server, reward=True)


def test_the_better_of_two_near_duplicates_is_taken(choose, serve):
    same = THOUGHTS.format("word0", "other0")
    rows, counts = choose(
        {}, {"query": "Which MON is 0 and 10 ?"}, {"thoughts": same, "solution": "answer : mon 0 ."}, {}
    )
    assert ids(rows) == ["c0", "c3"]
    assert why(counts) == {
        "c1": "near-duplicate: its query is a near-duplicate (100%) of c0",
        "c2": "near-duplicate: its answer is a near-duplicate (100%) of c0",
    }
    server = serve(classify=classifications(lambda ids: float(len(ids))))
    rows, counts = choose({}, {"query": "Which MON is 0 and 10 ?"}, {}, server=server, reward=True)
    assert ids(rows) == ["c1", "c2"]
    assert why(counts) == {"c0": "near-duplicate: its query is a near-duplicate (100%) of c1"}


def test_candidates_that_resemble_an_evaluation_set_are_rejected(choose, tmp_path):
    run = " ".join(f"w{n}" for n in range(13))
    held_out = tmp_path / "held.jsonl"
    queries = ("quite another one", "WHICH tue is 1 and  11", f"a {run} b")
    held_out.write_text("".join(json.dumps({"query": query}) + "\n" for query in queries))
    rows, counts = choose(
        {}, {}, {"query": f"something else {run.upper()} , and so on {'x ' * 30}"}, {}, held_out=[held_out]
    )
    assert ids(rows) == ["c0", "c3"]
    assert why(counts) == {
        "c1": f"held out: its query is a near-duplicate (100%) of {held_out}, row 1",
        "c2": "held out: its query shares 13 consecutive words with a held-out one",
    }
    held_out.write_text('{"query": "Which wed is 2, and 12?"}\n')
    _, counts = choose({}, {}, {"query": f"Tell me: which wed is 2 and 12 ? {'x ' * 30}"}, {}, held_out=[held_out])
    assert why(counts)["c2"] == f"held out: its query contains {held_out}, row 0"
    held_out.write_text('{"problem": "one"}\n')
    with pytest.raises(BadInput, match=r"held\.jsonl, row 0: expected a field query"):
        choose({}, {}, held_out=[held_out])


def test_the_longest_are_rejected_until_any_three_fit(choose, world, model):
    changes = [{"thoughts": THOUGHTS.format(f"a{n}", f"b{n}") + f" day{n}" * (20 * n)} for n in range(6)]
    wide = Room(prompt=PROMPT, max_tokens=100, max_model_len=100_000)
    config = {"count": 3, "query_tokens": 50, "format": "r1"}
    rows, counts = choose(*changes, room=wide, **config)
    assert ids(rows) == ["c0", "c1", "c2"]
    tokens = [each["tokens"] for each in counts["candidates"]]
    assert tokens == sorted(tokens)
    tokenizer = load_tokenizer(fetch_model(world.store, model, world.work_dir))

    def needed(shown):
        text = in_context_text(PROMPT, shown, "", tokenizer, "r1")
        return 150 + len(tokenizer.encode(text, add_special_tokens=False))

    everyone = candidates(ExamplesConfig(path=written(world.work_dir.parent, *changes)))
    exact = Room(prompt=PROMPT, max_tokens=100, max_model_len=needed(everyone[2:5]))
    rows, counts = choose(*changes, room=exact, **(config | {"count": 5}))
    assert ids(rows) == ["c0", "c1", "c2", "c3", "c4"]
    assert all(needed(shown) <= exact.max_model_len for shown in combinations(rows, 3))
    assert why(counts)["c5"].startswith("context: with the next longest it makes a prompt of ")
    narrow = exact.model_copy(update={"max_model_len": exact.max_model_len - 1})
    with pytest.raises(
        BadInput, match=r"(?s)5 examples are needed, 4 of 6 .*\n- c4: .*max_model_len is .*raise max_model_len"
    ):
        choose(*changes, room=narrow, **(config | {"count": 5}))


def test_a_context_too_small_for_three_examples_is_an_error(choose):
    room = Room(prompt=PROMPT, max_tokens=100, max_model_len=200)
    with pytest.raises(BadInput, match=r"(?s)3 examples are needed, 2 of 5 .* for the answer \(max_tokens\) that is "):
        choose({}, {}, {}, {}, {}, room=room, count=3)


def test_no_candidates_are_too_few(choose):
    with pytest.raises(BadInput, match=r"candidates\.jsonl: 2 examples are needed, 0 of 0 candidates can be taken"):
        choose()


# ---- what is shipped


def test_the_nano_worlds_examples_pass(world):
    config = ExamplesConfig(path=PROJECT_ROOT / "nano" / "examples", min_actions=3, min_words=10)
    made = world.do(choose_examples, config=config, servers=TinyServers(world.work_dir))
    assert made.rows == 10


def test_the_shipped_examples_pass_every_check(world, model):
    config = ExamplesConfig(path=SHIPPED, max_per_topic=1, near_duplicates=0.1)
    room = Room(prompt=PROMPT, max_tokens=8192, max_model_len=20_480)
    made = world.do(choose_examples, config=config, servers=TinyServers(world.work_dir), model=model, room=room)
    assert world.counts(made)["read"] == made.rows == len(list(SHIPPED.glob("*.md"))) == 10
    assert len({row["topic"] for row in world.rows(made)}) == 10
    for each in world.counts(made)["candidates"]:
        assert list(each["evidence"]) == ["analysis", "planning", "branching", "reflection"]
        assert 400 <= each["words"] <= 1_500
        assert each["author"]
        assert each["licence"] == "Apache-2.0"


@pytest.mark.parametrize("format", ["r1", "still2", "rlmt", "marco"])
def test_the_shipped_examples_can_be_shown_in_other_formats(format):
    config = ExamplesConfig(path=SHIPPED, format=format)
    assert [checked(each, config)["why"] for each in candidates(config)] == [None] * 10


@pytest.mark.skipif(not BENCH.is_dir(), reason="the real benchmarks (../shared/bench) are not here")
def test_the_shipped_examples_resemble_no_real_benchmark(tmp_path):
    fields = {
        "math500/math500.jsonl": "problem",
        "math_l5/problems.jsonl": "problem",
        "arenahard/question_v0.1.jsonl": "prompt",
        "arenahard/question_v2.0.jsonl": "prompt",
        "zebra/zebra_puzzles_gold.jsonl": "puzzle",
        "mtbench/mt_bench_question.jsonl": "turns",
    }
    held_out = tmp_path / "held.jsonl"
    with held_out.open("w") as out:
        for name, field in fields.items():
            with (BENCH / name).open() as lines:
                texts = [json.loads(line)[field] for line in lines]
            out.writelines(json.dumps({"query": each[0] if isinstance(each, list) else each}) + "\n" for each in texts)
    config = ExamplesConfig(path=SHIPPED, held_out=(held_out,), near_duplicates=0.3)
    found = [checked(each, config) for each in candidates(config)]
    reject_held_out(found, config)
    assert [each["why"] for each in remaining(found)] == [None] * 10
    assert len(held_out.read_text().splitlines()) > 3_000
    found[0]["query"] = json.loads(held_out.read_text().splitlines()[7])["query"]
    reject_held_out(found, config)
    assert found[0]["rejected"] == "held out"  # a copy is recognised


def test_no_texts_have_no_near_duplicates():
    assert near_duplicates([], 0.6) == []
