"""Topics: proposed and merged, edited by a person, given to queries by constrained choice."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import xgrammar
import yaml
from fakes import TinyServers, completions
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import BadInput
from infra.settings import PROJECT_ROOT
from infra.store.schemas import JUDGEMENTS, QUERIES, TOPICS
from nano.vocabulary import tokenizer
from tasks.queries.topics import (
    LONGEST_NAME,
    TopicsConfig,
    as_yaml,
    checked_topics,
    judge_topic,
    keep_topics,
    merge_proposals,
    merged,
    normal_name,
    proposal_question,
    propose_topics,
    read_names,
    read_topics,
    tag_queries,
    tag_question,
)

CONFIG = TopicsConfig(
    propose_template=PROJECT_ROOT / "prompts" / "propose_topics.md",
    tag_template=PROJECT_ROOT / "prompts" / "tag_topic.md",
)
NAME = st.from_regex(rf"[A-Za-z0-9][A-Za-z0-9 &/+#'.-]{{0,{LONGEST_NAME - 1}}}", fullmatch=True)


# ---- proposing


@given(st.lists(NAME, min_size=1, max_size=6), st.sampled_from([",", ", "]))
def test_every_list_that_the_constraint_allows_is_read(names, comma):
    question, text = proposal_question(6), comma.join(names)
    assert re.fullmatch(question.constraint["regex"], text)
    assert len(text) <= question.longest
    assert read_names(text) == [" ".join(name.split()) for name in names]


def test_the_servers_grammar_takes_the_constraint():
    xgrammar.Grammar.from_regex(proposal_question(10).constraint["regex"])


@pytest.mark.parametrize("text", ["", "coding,", ",coding", "coding,, maths", "coding; <b>", "a" * (LONGEST_NAME + 1)])
def test_any_other_list_is_not(text):
    assert read_names(text) is None


def test_a_list_of_whole_words_is_read_with_the_blanks_between_them():
    assert read_names("days month , " + "which " * 8) == ["days month", " ".join(["which"] * 8)]


def test_spellings_of_one_topic_count_together_and_once_a_proposal():
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


def test_one_topic_is_no_list(world):
    rows = [{"request_id": "proposal-00000", "answer": "", "labels": ["days"]}]
    proposals = world.table(JUDGEMENTS, [*rows, {"request_id": "p", "answer": "", "labels": None}])
    with pytest.raises(BadInput, match=r"1 proposals name 1 topics, expected at least 2: .* topics\.file"):
        world.do(merge_proposals, max_topics=30, proposals=proposals)


# ---- edited by a person


def topics_file(folder: Path, text: str) -> Path:
    (folder / "topics.yaml").write_text(text, encoding="utf-8")
    return folder / "topics.yaml"


def test_what_is_written_for_a_person_can_be_read_again(tmp_path):
    topics = [{"name": name, "proposals": 1} for name in ["coding", "yes", "12", "don't: this", "Übung"]]
    assert read_topics(topics_file(tmp_path, as_yaml(topics))) == ["coding", "yes", "12", "don't: this", "Übung"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "- coding\n\n- Data  Analysis\n- data-analysis\n",
            "line 4: topic 'data-analysis' is a double of 'Data  Analysis'",
        ),
        ("# mine\n- coding\n- ''\n", "line 3: a topic must have letters or digits, found ''"),
        ("- coding\n-\n", "line 2: a topic must be a text, found NoneType None"),
        ("- coding\n- yes\n", "line 2: a topic must be a text, found bool True: put it in quotes"),
        ("- coding\n- maths: 3\n", "line 2: a topic must be a text, found dict"),
        ("- coding\n- \\frac\n", "line 2: a topic must have no backslash and no control character"),
        ('- coding\n- "a\\u0007b"\n', "line 2: a topic must have no backslash and no control character"),
        ("- coding\n", "expected at least 2 topics, found 1"),
        ("[]", "expected at least 2 topics, found 0"),
        ("", "expected a list of topics, one '- topic' a line, found NoneType"),
        ("coding\nmaths\n", "expected a list of topics, one '- topic' a line, found str"),
        ("- [coding\n", "no YAML in UTF-8"),
    ],
)
def test_a_bad_list_is_told_by_file_and_line(tmp_path, text, said):
    path = topics_file(tmp_path, text)
    with pytest.raises(BadInput) as error:
        read_topics(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)


def test_a_list_that_is_not_there_or_no_text_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"none\.yaml does not exist"):
        read_topics(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"- \xff\n")
    with pytest.raises(BadInput, match=r"bytes\.yaml: no YAML in UTF-8"):
        read_topics(tmp_path / "bytes.yaml")


def test_an_entry_of_a_list_from_elsewhere_is_told_by_its_place():
    with pytest.raises(BadInput, match=r"^the form, row 2: topic 'A' is a double of 'a' \(the form, row 1\)"):
        checked_topics(["a", "A"], "the form", ["row 1", "row 2"])
    assert checked_topics([" a\n b ", "c"], "the form", ["row 1", "row 2"]) == ["a b", "c"]


@given(st.lists(st.text(max_size=5), max_size=6))
def test_a_list_is_taken_only_if_its_names_differ(names):
    try:
        taken = checked_topics(names, "list", [str(n) for n, _ in enumerate(names)])
    except BadInput:
        identities = [normal_name(name) for name in names]
        odd = any("\\" in name or not " ".join(name.split()).isprintable() for name in names)
        assert odd or "" in identities or len(set(identities)) < len(identities) or len(names) < 2
    else:
        assert len({normal_name(name) for name in taken}) == len(names) >= 2


# ---- tagging


def test_queries_are_tagged_with_one_of_the_list_or_other(world, query, model, serve):
    topics = world.do(keep_topics, "topics", names=["days of the week", "coding"])
    rows = [query(f"q{n}", f"which day is {n} ?") for n in range(6)] + [query("stated", topic="maths")]
    table = world.table(QUERIES, rows, "queries")
    said = {0: "daysoftheweek", 1: "days of the week", 2: "coding", 3: "other", 4: "Coding", 5: "days"}

    def answer(body):
        words = tokenizer().decode(body["prompt"]).split()
        return completions(lambda _: (said[int(words[words.index("?") - 1])], "stop"))(body)

    server = serve(completions=answer)
    common = {"queries": table, "topics": topics, "model": model, "servers": TinyServers(world.work_dir, server)}
    config = CONFIG.model_copy(update={"max_unread_share": 0.5})
    judged = [world.do(judge_topic, "tags", f"k{n}", config=config, shard=n, shards=3, **common) for n in range(3)]
    assert {tuple(body["structured_outputs"]["choice"]) for body in server.asked} == {
        ("days of the week", "coding", "other")
    }
    made = world.do(tag_queries, queries=table, judgements=judged)
    assert {row["query_id"]: row["topic"] for row in world.rows(made)} == {
        "q0": "days of the week",
        "q1": "days of the week",
        "q2": "coding",
        "q3": "other",
        "stated": "maths",
    }
    counts = world.counts(made)
    assert counts.pop("topics") == {"days of the week": 2, "coding": 1, "other": 1, "maths": 1}
    assert counts == {"read": 7, "kept": 5, "dropped: the judge's answer on the topic could not be read": 2}


def test_a_list_with_other_gets_no_second_one(world, query, model, serve):
    server = serve(completions=completions(lambda _: ("Other", "stop")))
    table = world.table(QUERIES, [query("q")], "queries")
    topics = world.table(TOPICS, [{"name": name, "proposals": None} for name in ("coding", "Other")], "topics")
    common = {"config": CONFIG, "queries": table, "model": model, "servers": TinyServers(world.work_dir, server)}
    judged = world.do(judge_topic, "tags", topics=topics, **common)
    assert Counter(server.asked[0]["structured_outputs"]["choice"]) == {"coding": 1, "Other": 1}
    assert world.rows(judged)[0]["labels"] == ["Other"]


def test_the_longest_tag_is_counted_in_bytes():
    assert tag_question(["maths", "Übungen"]).longest == 8


def test_the_shipped_questions_have_their_fields():
    for path, fields in ((CONFIG.propose_template, ("queries", "most")), (CONFIG.tag_template, ("topics", "query"))):
        assert all(f"{{{field}}}" in path.read_text() for field in fields)


def test_the_file_for_a_person_is_a_plain_list():
    text = as_yaml([{"name": "coding", "proposals": 3}, {"name": "maths", "proposals": 2}])
    assert yaml.safe_load(text) == ["coding", "maths"]
    assert text.startswith("# Proposed topics")
