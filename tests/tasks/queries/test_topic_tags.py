"""Tagging: an LLM chooses one topic of the list for each query, constrained by the server."""

from __future__ import annotations

from collections import Counter

from fakes import TinyServers, completions

from infra.settings import PROJECT_ROOT
from infra.store.schemas import QUERIES, TOPICS
from nano.vocabulary import tokenizer
from tasks.queries.topic_tags import judge_topic, tag_names, tag_queries, tag_question, tagged
from tasks.queries.topics import TopicsConfig, keep_topics

CONFIG = TopicsConfig(tag_template=PROJECT_ROOT / "prompts" / "tag_topic.md")


def test_queries_are_tagged_with_one_of_the_list_or_other(world, query, model, serve):
    topics = world.do(keep_topics, "topics", names=["days of the week", "coding"])
    rows = [query(f"q{n}", f"which day is {n} ?") for n in range(6)] + [query("stated", topic="maths")]
    table = world.table(QUERIES, rows, "queries")
    answers = {0: "daysoftheweek", 1: "days of the week", 2: "coding", 3: "other", 4: "Coding", 5: "days"}

    def answer(body):
        words = tokenizer().decode(body["prompt"]).split()
        return completions(lambda _: (answers[int(words[words.index("?") - 1])], "stop"))(body)

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


def test_other_is_added_unless_the_list_has_it(world, query, model, serve):
    assert tag_names(["coding"]) == ["coding", "other"]
    server = serve(completions=completions(lambda _: ("Other", "stop")))
    table = world.table(QUERIES, [query("q")], "queries")
    topics = world.table(TOPICS, [{"name": name, "proposals": None} for name in ("coding", "Other")], "topics")
    common = {"config": CONFIG, "queries": table, "model": model, "servers": TinyServers(world.work_dir, server)}
    judged = world.do(judge_topic, "tags", topics=topics, **common)
    assert Counter(server.asked[0]["structured_outputs"]["choice"]) == {"coding": 1, "Other": 1}
    assert world.rows(judged)[0]["labels"] == ["Other"]


def test_tags_are_counted_and_unreadable_answers_dropped():
    funnel, topics = Counter(), Counter()
    judged = [({"topic": "maths"}, []), ({"topic": None}, ["coding"]), ({"topic": None}, None)]
    assert [each["topic"] for each in tagged(judged, funnel, topics)] == ["maths", "coding"]
    assert (funnel["read"], funnel["kept"], topics) == (3, 2, {"maths": 1, "coding": 1})


def test_the_longest_tag_is_measured_in_bytes():
    assert tag_question(["maths", "Übungen"]).longest == 8


def test_the_shipped_question_has_its_fields():
    assert all(f"{{{field}}}" in CONFIG.tag_template.read_text() for field in ("topics", "query"))
