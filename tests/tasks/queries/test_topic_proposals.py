"""Proposals of topics: the question, reading its answers, the sample of queries, and merging the answers."""

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
from nano.vocabulary import tokenizer
from tasks.queries.topic_proposals import (
    LONGEST_NAME,
    merge_proposals,
    merged,
    proposal_question,
    proposal_turns,
    propose_topics,
    read_names,
)
from tasks.queries.topics import TopicsConfig

CONFIG = TopicsConfig(propose_template=PROJECT_ROOT / "prompts" / "propose_topics.md")
NAME = st.from_regex(rf"[A-Za-z0-9][A-Za-z0-9 &/+#'.-]{{0,{LONGEST_NAME - 1}}}", fullmatch=True)


@given(st.lists(NAME, min_size=1, max_size=6), st.sampled_from([",", ", "]))
def test_every_list_that_the_constraint_allows_is_read(names, comma):
    question, text = proposal_question(6), comma.join(names)
    assert re.fullmatch(question.constraint["regex"], text)
    assert len(text) <= question.longest
    assert read_names(text) == [" ".join(name.split()) for name in names]


def test_the_servers_grammar_accepts_the_constraint():
    xgrammar.Grammar.from_regex(proposal_question(10).constraint["regex"])


@pytest.mark.parametrize("text", ["", "coding,", ",coding", "coding,, maths", "coding; <b>", "a" * (LONGEST_NAME + 1)])
def test_any_other_list_is_not_read(text):
    assert read_names(text) is None


def test_a_list_of_whole_words_is_read_with_the_spaces_between_them():
    assert read_names("days month , " + "which " * 8) == ["days month", " ".join(["which"] * 8)]


def test_spellings_of_one_topic_count_together_and_once_per_proposal():
    proposals = [
        ["Coding", "Problem solving", "C++"],
        ["coding", "problem-solving", "Coding"],
        ["coding", "C", "other", "Other"],
        ["---"],
    ]
    assert merged(proposals) == [
        {"name": "coding", "proposals": 3},
        {"name": "Problem solving", "proposals": 2},
        {"name": "C", "proposals": 1},
        {"name": "C++", "proposals": 1},
    ]


def test_a_request_shows_a_group_of_queries(query):
    config = CONFIG.model_copy(update={"queries_per_proposal": 2, "names_per_proposal": 7})
    turns = dict(proposal_turns(config, [query(f"q{n}", f"which day is {n} ?") for n in range(3)], tokenizer()))
    assert list(turns) == ["proposal-00000", "proposal-00001"]
    first, second = turns.values()
    assert "<query>\nwhich day is 0 ?\n</query>\n\n<query>\nwhich day is 1 ?\n</query>" in first
    assert "at most 7" in first
    assert re.findall(r"which day is (\d) \?", second) == ["2"]


def test_topics_are_proposed_from_a_seeded_sample(world, query, model, serve):
    rows = [query(f"q{n}", f"which day is {n} ?", topic="stated" if n == 3 else None) for n in range(20)]
    table = world.table(QUERIES, rows, "queries")
    names = iter(["days , month", "days", "Days , older"])
    server = serve(completions=completions(lambda _: (next(names), "stop")))
    config = CONFIG.model_copy(update={"sample": 8, "queries_per_proposal": 3, "names_per_proposal": 4, "in_flight": 1})
    common = {"queries": table, "model": model, "servers": TinyServers(world.work_dir, server)}
    proposals = world.do(propose_topics, "proposals", config=config, **common)
    shown = [re.findall(r"which day is (\d+) \?", tokenizer().decode(body["prompt"])) for body in server.asked]
    assert [len(each) for each in shown] == [3, 3, 2]
    drawn = [number for each in shown for number in each]
    assert len(set(drawn)) == 8
    assert "3" not in drawn
    assert [row["labels"] for row in world.rows(proposals)] == [["days", "month"], ["days"], ["Days", "older"]]
    topics = world.do(merge_proposals, "topics", max_topics=2, proposals=proposals)
    assert world.rows(topics) == [{"name": "days", "proposals": 3}, {"name": "month", "proposals": 1}]
    assert world.counts(topics) == {"proposals": 3, "topics": 3, "kept": 2}

    names = iter(["a"] * 3)
    world.do(propose_topics, "proposals", "again", config=config, **common)
    assert [body["prompt"] for body in server.asked[3:]] == [body["prompt"] for body in server.asked[:3]]
    names = iter(["a"] * 3)
    world.do(propose_topics, "proposals", "other", config=config.model_copy(update={"seed": 1}), **common)
    assert [body["prompt"] for body in server.asked[6:]] != [body["prompt"] for body in server.asked[:3]]


def test_a_single_topic_is_too_few(world):
    rows = [{"request_id": "proposal-00000", "answer": "", "labels": ["days"]}]
    proposals = world.table(JUDGEMENTS, [*rows, {"request_id": "p", "answer": "", "labels": None}])
    with pytest.raises(BadInput, match=r"1 proposals name 1 topics, expected at least 2: .* topics\.file"):
        world.do(merge_proposals, max_topics=30, proposals=proposals)


def test_the_shipped_question_has_its_fields():
    assert all(f"{{{field}}}" in CONFIG.propose_template.read_text() for field in ("queries", "most"))
