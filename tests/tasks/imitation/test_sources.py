"""Texts of other models in the layouts in which people publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cot_formats import qwq, r1, rlmt, still2
from infra.errors import BadInput
from infra.store.schemas import QUERIES
from tasks.imitation.read import read_distilled
from tasks.imitation.sources import DistilledSource, texts_of
from tasks.queries.clean import AS_THEY_ARE, clean_queries
from tasks.queries.collect import collect_queries
from tasks.queries.sources import Skipped, queries_of

TEXT = still2.render("first , think .", "answer : 4 .")
R1 = r1.render("first , think .", "answer : 4 .")


def source(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> DistilledSource:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DistilledSource(path=str(path), **settings)


def read(tmp_path: Path, row: dict[str, Any], **settings: Any) -> Any:
    skipped = Skipped("texts.jsonl")
    found = [
        (query, tuple(each.values()))
        for _, query, made in texts_of(source(tmp_path, row, **settings), skipped)
        for each in made
    ]
    return found[0] if len(found) == 1 else (found or [*skipped.reasons])


WHOLE = ("2 + 2 ?", ("first , think .", "answer : 4 .", []))


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"question": "2 + 2 ?", "combined_text": TEXT, "domain": "math"}, {}),
        ({"question": "2 + 2 ?", "combined_text": r1.render("first , think .", "answer : 4 .")}, {}),
        ({"question": "2 + 2 ?", "combined_text": rlmt.render("first , think .", "answer : 4 .")}, {"format": "rlmt"}),
        (
            {"problem": "2 + 2 ?", "r1": "first , think .\n</think>\n\nanswer : 4 ."},
            {"column": "problem", "text": "r1"},
        ),
        (
            {"question": "2 + 2 ?", "trajectory": "<think>\nfirst , think .\n</think>", "attempt": "answer : 4 ."},
            {"thoughts": "trajectory", "solution": "attempt"},
        ),
        (
            {
                "system": "Think.",
                "conversations": [{"from": "user", "value": "2 + 2 ?"}, {"from": "gpt", "value": TEXT}],
            },
            {},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "2 + 2 ?"},
                    {"role": "assistant", "content": "answer : 4 .", "reasoning_content": "first , think ."},
                ]
            },
            {},
        ),
        ({"instruction": "2 + 2 ?", "input": "", "output": TEXT}, {}),
        (
            {
                "problem": "2 + 2 ?",
                "answer": "4",
                "messages": [{"role": "user", "content": "Solve 2 + 2 ?"}, {"role": "assistant", "content": TEXT}],
            },
            {"column": "problem"},
        ),
    ],
    ids=[
        "still2",
        "r1",
        "rlmt",
        "r1 opened by the prompt",
        "two fields",
        "sharegpt",
        "reasoning_content",
        "alpaca",
        "the query apart",
    ],
)
def test_a_text_is_found_in_each_layout(tmp_path: Path, row: dict[str, Any], settings: dict[str, Any]) -> None:
    assert read(tmp_path, row, **settings) == WHOLE


@pytest.mark.parametrize(
    ("row", "settings", "violations"),
    [
        ({"combined_text": "4"}, {}, ["no known format"]),
        ({"combined_text": "To solve it, add.\n\nSo it is \\boxed{4}."}, {}, ["no known format"]),
        ({"combined_text": "<thinking>first\n\nthen</thinking>\n\n\\boxed{4}"}, {}, ["no known format"]),
        ({"combined_text": "<think>\nfirst"}, {}, ["unclosed_thoughts", "missing_solution"]),
        ({"t": "x", "s": None}, {"thoughts": "t", "solution": "s"}, ["missing_solution"]),
        ({"combined_text": "<think>\nfirst\n</think>\n\n<answer> </answer>"}, {}, ["empty_solution"]),
        ({"t": [], "s": "4"}, {"thoughts": "t", "solution": "s"}, ["missing_thoughts"]),
        ({"t": ["x"], "s": []}, {"thoughts": "t", "solution": "s"}, ["missing_solution"]),
        ({"combined_text": "<think>\n\n</think>\n\n4"}, {"continued": True}, ["empty_thoughts"]),
    ],
)
def test_what_is_not_well_formed_says_why(tmp_path, row, settings, violations):
    assert read(tmp_path, {"question": "2 + 2 ?", **row}, **settings)[1][2] == violations


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "2 + 2 ?", "combined_text": "  "}, "no text"),
        ({"question": " ", "combined_text": "x"}, "empty"),
        ({"question": "2 + 2 ?", "combined_text": []}, "no text"),
        ({"question": "2 + 2 ?", "combined_text": [None, ""]}, "no text"),
        ({"conversations": [{"from": "user", "value": "2 + 2 ?"}]}, "the assistant does not answer"),
    ],
)
def test_what_cannot_be_used_is_counted(tmp_path, row, reason):
    assert read(tmp_path, row) == [reason]


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        (
            {"question": "2 + 2 ?", "answer": TEXT},
            {},
            "row 0: expected a field combined_text, found question, answer: set",
        ),
        (
            {"question": "2 + 2 ?", "combined_text": {"a": 4}},
            {},
            "row 0: field combined_text must be str or absent, found dict",
        ),
        ({"question": "2 + 2 ?", "t": "x"}, {"thoughts": "t", "solution": "s"}, "row 0: expected a field s, found"),
        (
            {"question": "2 + 2 ?", "t": ["x", "y"], "s": ["1", "2", "3"]},
            {"thoughts": "t", "solution": "s"},
            "2 texts in the field t, 3 in s",
        ),
    ],
)
def test_fields_that_are_not_there_end_the_run_with_their_names(
    world, model, servers, query, tmp_path, row, settings, said
):
    given = source(tmp_path, *[row] * 3, **settings)
    queries = world.table(QUERIES, [query("q")], "queries")
    with pytest.raises(BadInput, match=said):
        world.do(read_distilled, sources=[given], queries=queries, model=model, servers=servers)


def test_one_broken_line_is_counted_and_ends_nothing(world, model, servers, tmp_path):
    given = source(tmp_path, *({"question": f"{n} + 2 ?", "combined_text": TEXT} for n in range(200)))
    with (tmp_path / "texts.jsonl").open("a") as out:
        out.write('{"question": "cut\n')
    queries = world.do(collect_queries, key="c", source=given)
    made = world.do(read_distilled, key="d", sources=[given], queries=queries, model=model, servers=servers)
    assert world.counts(made) == {"read": 201, "kept": 200, "dropped: malformed": 1}


@pytest.mark.parametrize(
    ("row", "settings", "solutions"),
    [
        ({"combined_text": [TEXT, TEXT.replace("4", "5")]}, {}, ["answer : 4 .", "answer : 5 ."]),
        ({"t": ["x", "y"], "s": ["4", "5"]}, {"thoughts": "t", "solution": "s"}, ["4", "5"]),
        ({"t": ["x", "y"], "s": "4"}, {"thoughts": "t", "solution": "s"}, ["4", "4"]),
        ({"t": ["x"], "s": ["4", "5"]}, {"thoughts": "t", "solution": "s"}, ["4", "5"]),
    ],
)
def test_a_list_holds_several_texts(tmp_path, row, settings, solutions):
    found = read(tmp_path, {"question": "2 + 2 ?", **row}, **settings)
    assert [response[1] for _, response in found] == solutions
    assert not any(response[2] for _, response in found)


APART = {"thoughts": "t", "solution": "s"}


@pytest.mark.parametrize(
    "text",
    [
        "First , the user mentions the <think> tag . Then I look at it .",
        "I should close with </think> here . Then more .",
        "The result is <answer>42</answer>",
        "<answer>1</answer> or <answer>2</answer>",
    ],
)
def test_a_delimiter_that_is_only_mentioned_stays(tmp_path, text):
    for given in ({"t": text, "s": "answer : 4 ."}, {"t": "first , think .", "s": text}):
        thoughts, solution, violations = read(tmp_path, {"question": "2 + 2 ?", **given}, **APART)[1]
        assert text in (thoughts, solution)
        assert violations == []


def test_half_a_character_in_any_layout_is_malformed_and_named(world, model, servers, query, tmp_path):
    for answer in ({"content": "\ud83d"}, {"content": "4", "reasoning_content": "\ud83d"}):
        turns = [{"role": "user", "content": "2 + 2 ?"}, {"role": "assistant", **answer}]
        given = source(tmp_path, *[{"messages": turns}] * 3)
        queries = world.table(QUERIES, [query("q")], "queries")
        with pytest.raises(BadInput, match=r"row 0: field messages holds '\\ud83d', half of a character"):
            world.do(read_distilled, sources=[given], queries=queries, model=model, servers=servers)


def test_a_malformed_text_does_not_take_its_siblings_along(tmp_path):
    texts = ["<think>\ngood thoughts\n</think>", "<think>\n<think>bad\n</think>"]
    (_, good), (_, bad) = read(tmp_path, {"question": "2 + 2 ?", "combined_text": texts}, continued=True)
    assert (good[0], good[2]) == ("good thoughts", [])
    assert bad[2]


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"combined_text": "<think>\nfirst , think .\n</think>\n<answer>answer : 4 .</answer>"}, {}),
        ({"combined_text": [None, TEXT, " "]}, {}),
        ({"t": ["first , think .", None], "s": ["answer : 4 .", None]}, APART),
        ({"combined_text": "<think>\r\nfirst , think .\r\n</think>\r\n\r\nanswer : 4 ."}, {}),
        ({"t": TEXT, "s": "answer : 4 ."}, APART),
        ({"t": "<think>first , think .</think>\n\nSo it is 4.", "s": "answer : 4 ."}, APART),
        ({"t": "first , think .", "s": TEXT}, APART),
        ({"t": "<Thought>first , think .</Thought>", "s": "<Output>answer : 4 .</Output>"}, APART),
        ({"t": "first , think .", "s": "<|begin_of_solution|>answer : 4 .<|end_of_solution|>"}, APART),
        ({"t": "first , think .", "s": "<answer>\nanswer : 4 .\n</answer>"}, APART),
        (
            {
                "messages": [
                    {"role": "user", "content": "2 + 2 ?"},
                    {"role": "assistant", "content": R1, "reasoning_content": "first , think ."},
                ]
            },
            {},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "2 + 2 ?"},
                    {"role": "assistant", "content": R1, "reasoning_content": "  "},
                ]
            },
            {},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "2 + 2 ?"},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "first , think .", "signature": "x"},
                            {"type": "text", "text": "answer : 4 ."},
                        ],
                    },
                ]
            },
            {},
        ),
        (
            {"messages": [{"role": "user", "content": "no"}, {"role": "assistant", "content": "no"}], "gen": [TEXT]},
            {"text": "gen"},
        ),
        ({"instruction": "2 + 2 ?", "response": TEXT}, {"text": "response"}),
    ],
)
def test_thoughts_and_solution_come_without_anybodys_delimiters(tmp_path, row, settings):
    """Published sets mix fields and delimiters: whole responses in one of two fields, `<answer>`, other tags."""
    plain = {} if {"messages", "instruction"} & row.keys() else {"question": "2 + 2 ?"}
    assert read(tmp_path, {**plain, **row}, **settings)[-1] == WHOLE[-1]


def test_a_number_is_a_solution(tmp_path):
    assert read(tmp_path, {"question": "2 + 2 ?", "t": "first , think .", "s": 4}, **APART)[1][1] == "4"


@pytest.mark.parametrize(
    ("text", "thoughts"),
    [
        (qwq.render("first , think .", "4"), "first , think .\n\n**Final Answer**\n\n4"),
        ("So , 4 .", "So , 4 ."),
        ("<think>\nfirst , think .\n</think>\n\nanswer : 4 .", "first , think ."),
    ],
)
def test_all_of_a_continued_text_is_thoughts(tmp_path: Path, text: str, thoughts: str) -> None:
    _, found = read(tmp_path, {"question": "2 + 2 ?", "combined_text": text}, continued=True)
    assert found == (thoughts, None, [])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"solution": "s"}, "solution is set without thoughts"),
        ({"thoughts": "t"}, "without solution"),
        ({"thoughts": "", "solution": "s"}, "thoughts is empty"),
        ({"thoughts": "s", "solution": "s"}, "thoughts and solution are both s"),
        ({"thoughts": "t", "solution": "s", "text": "x"}, "text or format is set beside thoughts"),
    ],
)
def test_half_a_setting_is_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DistilledSource(path="a.jsonl", **settings)


def test_queries_and_topics_come_from_the_same_fields(tmp_path: Path) -> None:
    found = list(queries_of(source(tmp_path, {"question": "2 + 2 ?", "combined_text": TEXT, "domain": "math"})))
    assert [(row["query"], row["topic"]) for row in found] == [("2 + 2 ?", "math")]


def test_texts_of_queries_that_mining_dropped_are_left_out_and_the_funnel_adds_up(world, model, servers, tmp_path):
    rows = [{"question": f"{n} + 2 ?", "combined_text": TEXT, "domain": "math"} for n in (1, 2, 2, 3)]
    given = source(tmp_path, *rows, {"question": "9 + 2 ?", "combined_text": ""})
    every = world.rows(world.do(collect_queries, source=given))
    queries = world.table(QUERIES, [row for row in every if row["query"] in ("1 + 2 ?", "2 + 2 ?")][:2], "queries")
    common = {"sources": [given], "model": model, "servers": servers}
    made = world.do(read_distilled, key="d", queries=queries, **common)
    assert [(row["query"], row["sample"], row["topic"], row["source_row"]) for row in world.rows(made)] == [
        ("1 + 2 ?", 0, "math", 0),
        ("2 + 2 ?", 0, "math", 1),
        ("2 + 2 ?", 1, "math", 2),
    ]
    assert {row["thought_tokens"] for row in world.rows(made)} == {4}
    assert world.counts(made) == {
        "read": 5,
        "kept": 3,
        "dropped: the query was not kept by mining": 1,
        "dropped: no text": 1,
    }
    invisible = source(tmp_path, {"question": "1\u200b + 2 ?\x07", "combined_text": TEXT})
    mined = world.do(
        clean_queries, key="m", config=AS_THEY_ARE, sources=[world.do(collect_queries, key="i", source=invisible)]
    )
    assert world.do(read_distilled, key="j", sources=[invisible], queries=mined, model=model, servers=servers).rows == 1
    with pytest.raises(BadInput, match="no text is left"):
        world.do(read_distilled, key="e", queries=world.table(QUERIES, [], "queries", "0"), **common)
