"""Difficulty by the seven criteria: the question, reading its answers, and which queries are kept."""

from __future__ import annotations

import re

import pytest
import xgrammar
from fakes import TinyServers, completions
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import BadInput
from infra.settings import PROJECT_ROOT
from infra.store.schemas import JUDGEMENTS, QUERIES
from nano.vocabulary import encoder, tokenizer
from tasks.queries.difficulty import CRITERIA, DIFFICULTY, RateConfig, judge_difficulty, rate_queries, read_criteria

CONFIG = RateConfig(template=PROJECT_ROOT / "prompts" / "judge_difficulty.md")


def spelled(verdicts: list[bool], between: str = "\n", colon: str = ": ") -> str:
    return between.join(f"{n}{colon}{'yes' if met else 'no'}" for n, met in enumerate(verdicts, 1))


@given(
    st.lists(st.booleans(), min_size=7, max_size=7),
    st.sampled_from(["\n", " ", ""]),
    st.sampled_from([":", ": ", " : ", " :"]),
)
def test_every_answer_that_the_constraint_allows_is_read(verdicts, between, colon):
    text = spelled(verdicts, between, colon)
    assert re.fullmatch(DIFFICULTY.constraint["regex"], text)
    assert len(text) <= DIFFICULTY.longest
    assert read_criteria(text) == [name for name, met in zip(CRITERIA, verdicts, strict=True) if met]


def test_the_servers_grammar_accepts_the_constraint():
    xgrammar.Grammar.from_regex(DIFFICULTY.constraint["regex"])  # stricter than `re`: no literal line end in a class


def test_the_longest_answer_is_measured_right():
    assert len(spelled([True] * 7, "\n", " : ")) == DIFFICULTY.longest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        spelled([True] * 6),
        spelled([True] * 7) + "\n8: yes",
        spelled([True] * 7).replace("3: yes", "3: maybe"),
        spelled([True] * 7).replace("yes", "Yes", 1),
        "Sure! " + spelled([True] * 7),
        spelled([True] * 7) + " because",
        spelled([True] * 7).replace("1:", "2:"),
    ],
)
def test_any_other_answer_is_not_read(text):
    assert read_criteria(text) is None


def test_the_nano_judge_can_spell_its_answer():
    text = tokenizer().decode([encoder()[word] for n in range(1, 8) for word in (str(n), ":", "yes")])
    assert text == "1 : yes 2 : yes 3 : yes 4 : yes 5 : yes 6 : yes 7 : yes"
    assert read_criteria(text) == list(CRITERIA)


def test_the_shipped_question_lists_the_criteria_in_their_order():
    lines = re.findall(r"^(\d)\. ([\w -]+):", CONFIG.template.read_text().lower(), re.MULTILINE)
    assert lines == [(str(n), name) for n, name in enumerate(CRITERIA, 1)]


def test_ratings_fill_in_criteria_and_difficulty_and_the_funnel_adds_up(world, query, model, serve):
    answers = {f"q{n}": spelled([k < n for k in range(7)]) for n in range(8)} | {"q8": "no idea"}
    rows = [query(f"q{n}", f"which day is {n} ?", difficulty=None) for n in range(9)]
    rows += [query("stated", difficulty=6, criteria=["complexity"]), query("easy", difficulty=1)]
    table = world.table(QUERIES, rows, "queries")

    def answer(body):
        shown = tokenizer().decode(body["prompt"])
        number = next(n for n in range(9) if f"which day is {n} ?" in shown)
        return completions(lambda _: (answers[f"q{number}"], "stop"))(body)

    server = serve(completions=answer)
    config = CONFIG.model_copy(update={"max_unread_share": 0.25, "template": CONFIG.template})
    common = {"config": config, "queries": table, "model": model, "servers": TinyServers(world.work_dir, server)}
    judged = [world.do(judge_difficulty, "judged", f"k{n}", shard=n, shards=2, **common) for n in range(2)]
    assert len(server.asked) == 10  # one per query of unknown difficulty, and the malformed one again
    made = world.do(rate_queries, min_difficulty=5, queries=table, judgements=judged)
    found = {row["query_id"]: (row["criteria"], row["difficulty"]) for row in world.rows(made)}
    assert found == {
        "q5": (list(CRITERIA[:5]), 5),
        "q6": (list(CRITERIA[:6]), 6),
        "q7": (list(CRITERIA), 7),
        "stated": (["complexity"], 6),
    }
    counts = world.counts(made)
    assert counts == {
        "read": 11,
        "kept": 4,
        "dropped: too easy": 6,
        "dropped: the judge's answer on difficulty could not be read": 1,
    }
    kept = world.do(rate_queries, key="lower", min_difficulty=0, queries=table, judgements=judged)
    assert kept.rows == 10  # another limit sends no request again


def test_an_empty_table(world, model):
    table = world.table(QUERIES, [], "queries")
    servers = TinyServers(world.work_dir)
    judged = world.do(judge_difficulty, "judged", config=CONFIG, queries=table, model=model, servers=servers)
    made = world.do(rate_queries, min_difficulty=5, queries=table, judgements=[judged])
    assert (made.rows, world.counts(made)) == (0, {})


def test_a_template_without_its_query_is_an_error(world, query, model, tmp_path):
    (tmp_path / "bare.md").write_text("Is it hard?")
    config = CONFIG.model_copy(update={"template": tmp_path / "bare.md"})
    table = world.table(QUERIES, [query("q", difficulty=None)], "queries")
    with pytest.raises(BadInput, match=r"bare\.md: the prompt template lacks the field \{query\}"):
        world.do(judge_difficulty, config=config, queries=table, model=model, servers=TinyServers(world.work_dir))


def test_judgements_of_other_queries_are_an_error(world, query):
    table = world.table(QUERIES, [query("q", difficulty=None)], "queries")
    other = world.table(JUDGEMENTS, [{"request_id": "p", "answer": "", "labels": None}], "judged")
    with pytest.raises(ValueError, match="expected query q, found p"):
        world.do(rate_queries, min_difficulty=5, queries=table, judgements=[other])
