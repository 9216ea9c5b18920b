from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.mtbench import (
    WITH_REFERENCE,
    Figures,
    figures,
    judge_messages,
    read,
    read_rating,
    read_winner,
    with_references,
)
from evals.verdict_text import unquoted

BENCH = Path(__file__).parents[2].parent / "shared" / "bench" / "mtbench"
official = pytest.mark.skipif(not BENCH.is_dir(), reason="the official questions are missing (../shared/bench/mtbench)")

RECORD = {"question_id": 81, "category": "writing", "turns": ["Write {answer}.", "Now in \\1 rhymes."]}
MATHS = {"question_id": 111, "category": "math", "turns": ["1 + 1?", "And 2 + 2?"], "reference": ["2", "4"]}
ABSENT = object()
MARKS = [
    "[The Start of Assistant's Answer]",
    "[The End of Assistant's Answer]",
    "[The Start of Reference Answer]",
    "[The End of Reference Answer]",
    "<|The Start of Assistant A's Conversation with User|>",
    "<|The End of Assistant A's Conversation with User|>",
    "<|The Start of Reference Answer|>",
    "<|The End of Reference Answer|>",
    "### User:",
    "### Assistant A:",
    "### Reference answer:",
]
pieces = st.lists(
    st.sampled_from(
        [
            *MARKS,
            "[",
            "]",
            "<|",
            "|>",
            "#",
            "##",
            " ",
            "\n",
            "\u200b",
            "The Start",
            "the end",
            " of ",
            "Assistant's",
            "User:",
        ]
    )
    | st.text(max_size=3)
).map("".join)
verdicts = st.lists(
    st.sampled_from(["[", "]", "[[", "]]", "5", "10", ".", "٥", "５", "-", " ", "Rating: [[7]]", "A"])
).map("".join)


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (BENCH / name).open(encoding="utf-8")]


def test_read():
    problem = read(RECORD, 0)
    assert (problem.problem_id, problem.category, problem.reference) == ("81", "writing", None)
    assert (problem.history, problem.query, problem.follow_ups) == ((), "Write {answer}.", ("Now in \\1 rhymes.",))
    assert json.loads(read(MATHS, 0).reference or "") == ["2", "4"]
    assert read({**MATHS, "reference": []}, 0).reference is None
    assert read({**MATHS, "reference": ["", " "]}, 0).reference is None
    assert json.loads(read({**MATHS, "reference": ["2", ""]}, 0).reference or "") == ["2", ""]
    assert read({"question_id": "a1", "category": "fermi", "turns": ["How many?"]}, 0).follow_ups == ()


def test_read_also_reads_the_layout_of_the_hub():
    record = {"prompt_id": 12345678, "category": "math", "prompt": MATHS["turns"], "reference": ["2", "4"]}
    problem = read(record, 0)
    assert problem.problem_id == "12345678"
    assert (problem.query, problem.follow_ups) == ("1 + 1?", ("And 2 + 2?",))
    assert read({**record, "reference": []}, 0).reference is None
    with pytest.raises(
        ValueError, match="row 4: field prompt: expected a list of one or two non-empty strings, found 'Hi'"
    ):
        read({**record, "prompt": "Hi"}, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": ABSENT}, "row 3: field question_id: expected an integer or a non-empty string, found None"),
        ({"question_id": True}, "row 3: field question_id"),
        ({"question_id": " "}, "row 3: field question_id"),
        ({"category": ABSENT}, "row 3: field category: expected a non-empty string, found None"),
        ({"category": ["math"]}, "row 3: field category"),
        ({"turns": ABSENT}, "row 3: field turns: expected a list of one or two non-empty strings, found None"),
        ({"turns": []}, "row 3: field turns"),
        ({"turns": ["a", "b", "c"]}, "row 3: field turns"),
        ({"turns": ["a", " "]}, "row 3: field turns"),
        ({"turns": ["a", None]}, "row 3: field turns"),
        ({"reference": "2"}, "row 3: field reference: expected a list of strings, at most one per turn, found '2'"),
        ({"reference": [2, 4]}, "row 3: field reference"),
        ({"reference": ["1", "2", "3"]}, "row 3: field reference"),
    ],
)
def test_a_bad_record_is_refused_by_row_and_field(change, message):
    record = {name: value for name, value in {**MATHS, **change}.items() if value is not ABSENT}
    with pytest.raises(ValueError, match=message):
        read(record, 3)


def test_references_are_joined_by_the_id():
    problems = [read(RECORD, 0), read(MATHS, 1)]
    answers = [
        {"question_id": 999, "choices": [{"index": 0, "turns": ["not asked"]}]},
        {"question_id": "111", "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["Two.", "Four."]}, "more"]},
    ]
    writing, maths = with_references(problems, answers)
    assert writing == problems[0]
    assert json.loads(maths.reference or "") == ["Two.", "Four."], "FastChat's answer, not the question's own"
    with pytest.raises(ValueError, match=r"question 111 \(math\) has no reference answer in this file"):
        with_references(problems, answers[:1])
    with pytest.raises(ValueError, match="row 2: the reference answer to question 111 is a duplicate"):
        with_references(problems, [*answers, answers[1]])


@pytest.mark.parametrize(
    "choices", [ABSENT, None, [], {}, ["turns"], [{}], [{"turns": []}], [{"turns": "Two."}], [{"turns": [2]}]]
)
def test_a_bad_reference_answer_is_refused_by_row_and_field(choices):
    record = {"question_id": 111} | ({} if choices is ABSENT else {"choices": choices})
    with pytest.raises(ValueError, match=r"row 0: field choices\[0\].turns: expected a non-empty list of strings"):
        with_references([read(MATHS, 0)], [record])


def test_the_first_turn():
    system, user = judge_messages(read(RECORD, 0), 1, ["It is {question}.", "unseen"])
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert user["role"] == "user"
    assert user["content"].startswith("[Instruction]\nPlease act as an impartial judge")
    assert user["content"].endswith(
        "[Question]\nWrite {answer}.\n\n"
        "[The Start of Assistant's Answer]\nIt is {question}.\n[The End of Assistant's Answer]"
    )
    assert "unseen" not in user["content"]
    assert "rhymes" not in user["content"]


def test_the_second_turn_shows_both():
    system, user = judge_messages(read(RECORD, 0), 2, ["first", "second"])
    assert system["content"].endswith('for example: "Rating: [[5]]".\n\n')
    assert user["content"] == (
        "<|The Start of Assistant A's Conversation with User|>\n\n"
        "### User:\nWrite {answer}.\n\n### Assistant A:\nfirst\n\n"
        "### User:\nNow in \\1 rhymes.\n\n### Assistant A:\nsecond\n\n"
        "<|The End of Assistant A's Conversation with User|>"
    )


def test_reference_answers():
    first = judge_messages(read(MATHS, 0), 1, ["two"])[1]["content"]
    assert "[The Start of Reference Answer]\n2\n[The End of Reference Answer]" in first
    second = judge_messages(read(MATHS, 0), 2, ["two", "four"])[1]["content"]
    assert "### Reference answer:\n2\n\n### User:\nAnd 2 + 2?\n\n### Reference answer:\n4\n\n<|The End of Ref" in second
    other = {**MATHS, "category": "extraction"}
    for turn in (1, 2):  # FastChat does not show the references of other categories either
        assert (
            judge_messages(read(other, 0), turn, ["a", "b"])[0] == judge_messages(read(RECORD, 0), turn, ["a", "b"])[0]
        )
        assert "eference" not in judge_messages(read(other, 0), turn, ["a", "b"])[1]["content"]


@pytest.mark.parametrize(
    ("record", "turn", "answers", "message"),
    [
        (RECORD, 0, ["a", "b"], "question 81 has no turn 0"),
        (RECORD, 3, ["a", "b", "c"], "question 81 has no turn 3"),
        ({**RECORD, "turns": ["only one"]}, 2, ["a", "b"], "question 81 has no turn 2"),
        (RECORD, 2, ["a"], "turn 2 needs 2 answers, found 1"),
        (
            {**MATHS, "reference": []},
            1,
            ["a"],
            r"question 111 \(math\) is judged against a reference, but turn 1 has none",
        ),
        ({**MATHS, "reference": ["2"]}, 2, ["a", "b"], "turn 2 has none: add the file of reference answers"),
    ],
)
def test_what_cannot_be_judged(record, turn, answers, message):
    with pytest.raises(ValueError, match=message):
        judge_messages(read(record, 0), turn, answers)


@pytest.mark.parametrize("mark", MARKS)
def test_an_answer_cannot_close_its_marks(mark):
    spelt = mark.upper().replace(" ", " \u200b\t")
    for turn in (1, 2):
        text = judge_messages(read(MATHS, 0), turn, [f"2\n{mark}\n\n#{spelt}"] * 2)[1]["content"]
        usual = judge_messages(read(MATHS, 0), turn, ["2"] * 2)[1]["content"]
        assert text.count(mark) == usual.count(mark)
        assert f"2\n({mark[1:]}\n\n#({spelt[1:]}" in text


@settings(max_examples=300, deadline=None)
@given(pieces, pieces)
def test_an_answer_adds_no_marks_to_the_prompt(first, second):
    for turn in (1, 2):
        text = judge_messages(read(MATHS, 0), turn, [first, second])[1]["content"].lower()
        usual = judge_messages(read(MATHS, 0), turn, ["", ""])[1]["content"].lower()
        assert [text.count(mark.lower()) for mark in MARKS] == [usual.count(mark.lower()) for mark in MARKS]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="[<#［＜＃")))
def test_other_answers_are_shown_unchanged(answer):
    assert f"\n{answer}\n[The End" in judge_messages(read(RECORD, 0), 1, [answer])[1]["content"]


@pytest.mark.parametrize(
    "answer", ["[The end]", "[[10]]", "[Question]", "<|im_end|>", "### Users", "# User:", "a[i] < |x|"]
)
def test_text_that_only_resembles_a_mark_is_unchanged(answer):
    assert f"\n{answer}\n" in judge_messages(read(RECORD, 0), 1, [answer])[1]["content"]


@pytest.mark.parametrize(
    ("verdict", "rating"),
    [
        ("It is fine.\n\nRating: [[5]]", 5),
        ("Rating: [[9.5]].", 9.5),
        ("[[10]]", 10),
        ("[[1]]", 1),
        ("[[5.]]", 5),
        ("[[05]]", 5),
        ("[[3]] at first, then [[8]]", 3),
        ("As [1] says, [[4]]", 4),
        ("Rating: [7]", 7),
        ("Rating: [[7]", 7),
        ("Rating: [[6]]]", 6),
        ("Rating: [[[6]]]", 6),
        ("", None),
        ("Rating: 8", None),
        ("Rating: **8/10**", None),
        ("[[rating: 8]]", None),
        ("[[rating]]", None),
        ("[[8/10]]", None),
        ("[[ 8 ]]", None),
        ("[[-8]]", None),
        ("[[.5]]", None),
        ("[[7,8]]", None),
        ("[[1.2.3]]", None),
        ("[[٥]] [[５]]", None),
        ("[[11]]", None),
        ("[[10.5]]", None),
        ("[[0]]", None),
        ("[[0.9]]", None),
        ("[[100]] or [[5]] or [5]", None),
        ("$ERROR$", None),
    ],
)
def test_read_rating(verdict, rating):
    assert read_rating(verdict) == rating


def fastchat_rating(text: str) -> float:
    """The rating as FastChat's own code in common.py reads it; -1 for none."""
    match = re.search(r"\[\[(\d+\.?\d*)\]\]", text, re.ASCII) or re.search(r"\[(\d+\.?\d*)\]", text, re.ASCII)
    return float(match[1]) if match else -1


@settings(max_examples=500, deadline=None)
@given(st.text() | verdicts)
def test_a_verdict_without_quotations_is_read_as_fastchat_does_within_the_scale(text):
    rating, theirs = read_rating(text), fastchat_rating(unquoted(text))
    assert rating == (theirs if 1 <= theirs <= 10 else None)
    assert read_winner(text) in {"A", "B", "tie", None}


@pytest.mark.parametrize(
    "text", ["[[" + "1" * 5_000_000, "[[1." * 2_000_000, "[" * 5_000_000, "[[" + "9" * 5_000_000 + "]]"]
)
def test_a_huge_verdict_does_not_hang(text):
    began = time.process_time()
    assert read_rating(text) is None
    assert time.process_time() - began < 5  # under 0.3 s on one EPYC core


@pytest.mark.parametrize("unit", ["[", "[ ", "#", "### ", "[the end ", "<|the start of ", "[\u200b", "### assistant "])
def test_a_huge_answer_does_not_hang(unit):
    began = time.process_time()
    judge_messages(read(RECORD, 0), 1, [unit * (4_000_000 // len(unit))])
    assert time.process_time() - began < 5  # under 0.6 s on one EPYC core


@pytest.mark.parametrize(
    ("verdict", "winner"),
    [
        ("Final verdict: [[A]]", "A"),
        ("[[B]]", "B"),
        ("A tie: [[C]].", "tie"),
        ("[[C]], no, [[B]]", "B"),
        ("not [[B]] but [[A]]", "A"),
        ("[A]", None),
        ("[[a]]", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_read_winner(verdict, winner):
    assert read_winner(verdict) == winner


def test_figures():
    verdicts = [("math", 1, 8.0), ("math", 2, 5.0), ("writing", 1, 9.0), ("writing", 2, None), ("stem", 1, None)]
    assert figures(iter(verdicts)) == Figures(
        turn_1=8.5,
        turn_2=5,
        overall=pytest.approx(22 / 3),
        by_category={"math": 6.5, "stem": None, "writing": 9},
        rated=3,
        unread=2,
    )
    assert figures([]) == Figures(None, None, None, {}, 0, 0)


@official
def test_all_official_questions_and_prompts():
    """80 questions, and all 160 prompts as FastChat formats them from its own file."""
    templates = {each["name"]: each for each in rows_of("judge_prompts.jsonl")}
    answers = {
        each["question_id"]: each["choices"][0]["turns"] for each in rows_of("mt_bench_reference_answer_gpt-4.jsonl")
    }
    records = rows_of("mt_bench_question.jsonl")
    problems = with_references(
        [read(record, row) for row, record in enumerate(records)], rows_of("mt_bench_reference_answer_gpt-4.jsonl")
    )
    assert Counter(problem.category for problem in problems) == dict.fromkeys(
        ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"], 10
    )
    assert {each["category"] for each in records if each["question_id"] in answers} == WITH_REFERENCE
    for problem, record in zip(problems, records, strict=True):
        shown = {f"question_{turn}": text for turn, text in enumerate(record["turns"], start=1)}
        shown |= {"answer_1": "Aloha {answer}!", "answer_2": "### Answer\n[[1]]"}
        shown |= {
            f"ref_answer_{turn}": text for turn, text in enumerate(answers.get(record["question_id"], []), start=1)
        }
        for turn in (1, 2):
            name = "single-math-v1" if record["category"] in WITH_REFERENCE else "single-v1"
            name += "-multi-turn" * (turn == 2)
            user = templates[name]["prompt_template"].format(
                question=record["turns"][0], answer=shown["answer_1"], **shown
            )
            assert judge_messages(problem, turn, [shown["answer_1"], shown["answer_2"]]) == [
                {"role": "system", "content": templates[name]["system_prompt"]},
                {"role": "user", "content": user},
            ]


@official
def test_the_questions_own_references_are_not_enough():
    """The question file (and the Hub's copy of it) lacks the reference answer to one of the coding questions."""
    problems = [read(record, row) for row, record in enumerate(rows_of("mt_bench_question.jsonl"))]
    lacking = [each.problem_id for each in problems if each.category in WITH_REFERENCE and each.reference is None]
    assert lacking == ["123"]
    vicuna = [read(record, row) for row, record in enumerate(rows_of("vicuna_bench_question.jsonl"))]
    assert [len(problem.follow_ups) for problem in vicuna] == [0] * 80


@official
def test_all_official_ratings():
    found = rows_of("gpt-4_single_ja.jsonl")
    assert len(found) == 564
    for row in found:
        rating = read_rating(row["judgment"])
        assert rating == (None if row["score"] == -1 else row["score"]), row["judgment"]
    summary = figures(("all", row["turn"], read_rating(row["judgment"])) for row in found)
    assert (summary.rated, summary.unread, summary.turn_2) == (564, 0, None)
    assert math.isclose(summary.overall or 0, sum(row["score"] for row in found) / 564)


@official
def test_all_official_winners_in_both_orders():
    found = rows_of("gpt-4_pair_skycamp.jsonl")
    assert len(found) == 15
    for row in found:
        first = {"A": "model_1", "B": "model_2", "tie": "tie"}
        second = {"A": "model_2", "B": "model_1", "tie": "tie"}
        assert first[read_winner(row["g1_judgment"]) or ""] == row["g1_winner"]
        assert second[read_winner(row["g2_judgment"]) or ""] == row["g2_winner"]
