from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.problem import Problem
from evals.wildbench import (
    EMPTY,
    PAIR_WORDS,
    Answer,
    checklist_and_tasks,
    model_is_a,
    pair_messages,
    read,
    read_answer,
    read_choice,
    read_score,
    score_messages,
)

BENCH = Path(__file__).parents[2].parent / "shared" / "bench" / "wildbench"
official = pytest.mark.skipif(not BENCH.is_dir(), reason="the official files are missing (../shared/bench/wildbench)")

RECORD = {
    "id": "ae00",
    "session_id": "ae00",
    "conversation_input": [
        {"role": "user", "content": "Hi", "language": "English", "redacted": False, "toxic": False},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Plan a {$checklist}."},
    ],
    "references": {"gpt-4": "A plan."},
    "length": 3,
    "checklist": ["Is it a plan?", "Is it {$candidate_B}?"],
    "intent": "To plan.",
    "primary_tag": "Planning",
    "secondary_tags": ["Reasoning", "Math"],
}
PROBLEM = read(RECORD, 0)
ABSENT = object()
PLACES = ["history", "query", "response", "response_A", "response_B", "checklist"]
MARKS = [f"<|{edge}_of_{place}|>" for place in PLACES for edge in ("begin", "end")]
CHOICES = ["A++", "A+", "A=B", "B+", "B++"]
pieces = st.lists(
    st.sampled_from(
        [*MARKS, "<", "|", "＜", "｜", " ", "\u200b", "end_of_response", "{$history}", "{$candidate_A}", "a"]
    )
).map("".join)
values = st.sampled_from(['"7"', "7", '"[7]"', '"10"', '"11"', '"7/10"', "[7]", '"A++"', '"[B+]"', "null", '"', "1e9"])
broken = st.lists(
    st.sampled_from(
        ['{"', '"score"', '"choice"', ":", ": ", ",", "{", "}", "\\", "[", "]", "```json\n", "\n", "“score”"]
    )
    | values
).map("".join)


def test_read():
    assert PROBLEM.problem_id == "ae00"
    assert PROBLEM.query == "Plan a {$checklist}."
    assert PROBLEM.history == ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"})
    assert PROBLEM.category == "Planning & Reasoning"
    assert checklist_and_tasks(PROBLEM) == (RECORD["checklist"], ["Planning & Reasoning", "Math & Data Analysis"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, ABSENT)
            for field in ("session_id", "conversation_input", "checklist", "primary_tag", "secondary_tags")
        ),
        *(("session_id", value) for value in (7, "", None)),
        *(("conversation_input", value) for value in ([], "Hi", {}, [7], [{"role": "user"}])),
        ("conversation_input", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]),
        ("conversation_input", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]),
        ("conversation_input", [{"role": "user", "content": " "}]),
        *(("checklist", value) for value in ([], "Is it?", [7], None)),
        *(("primary_tag", value) for value in ("Poems", None, ["Math"])),
        *(("secondary_tags", value) for value in ("Math", ["Poems"], None, [7])),
    ],
)
def test_read_names_the_row_and_the_field(field, value):
    changed = {**RECORD, field: value}
    if value is ABSENT:
        del changed[field]
    with pytest.raises(ValueError, match=rf"^row 7: field {field}\b.*: expected"):
        read(changed, 7)


def test_read_answer():
    record = {"session_id": "ae00", "generator": "gpt-4", "output": ["A plan."], "chat_history": ["Hi"]}
    assert (
        read_answer(record, 0) == read_answer({**record, "output": "A plan."}, 0) == Answer("ae00", "gpt-4", "A plan.")
    )
    for field, value in (
        ("output", []),
        ("output", ["a", "b"]),
        ("output", 7),
        ("generator", ""),
        ("session_id", None),
    ):
        with pytest.raises(ValueError, match=rf"^row 2: field {field}: expected"):
            read_answer({**record, field: value}, 2)


def test_a_problem_without_a_checklist_is_named():
    with pytest.raises(ValueError, match="problem x has no checklist"):
        score_messages(Problem(problem_id="x", query="Hi"), "Hello")


def test_score_messages_show_the_conversation_the_checklist_and_the_whole_answer():
    answer = "word " * 3 * PAIR_WORDS
    (message,) = score_messages(PROBLEM, answer)
    assert message["role"] == "user"
    assert "<|begin_of_history|>\n\nUSER: Hi\n\nASSISTANT: Hello!\n\n\n\n<|end_of_history|>" in message["content"]
    assert "<|begin_of_query|>\n\nPlan a {$checklist}.\n\n<|end_of_query|>" in message["content"]
    assert f"<|begin_of_response|>\n\n{answer}\n\n<|end_of_response|>" in message["content"]
    assert "- Is it a plan?\n- Is it {$candidate_B}?\n\n\n<|end_of_checklist|>" in message["content"]


@official
def test_the_prompts_equal_the_authors():
    score = (BENCH / "eval_template.score.v2.md").read_text(encoding="utf-8")
    pairwise = (BENCH / "eval_template.pairwise.v2.md").read_text(encoding="utf-8")
    a, b = ("mine", "theirs") if model_is_a(PROBLEM.problem_id) else ("theirs", "mine")
    parts = {
        "{$history}": "USER: Hi\n\nASSISTANT: Hello!\n\n",
        "{$user_query}": PROBLEM.query,
        "{$model_output}": "mine",
        "{$candidate_A}": a,
        "{$candidate_B}": b,
    }
    for template, (message,) in (
        (score, score_messages(PROBLEM, "mine")),
        (pairwise, pair_messages(PROBLEM, "mine", "theirs")),
    ):
        before, after = template.split("{$checklist}")
        for place, text in parts.items():
            before = before.replace(place, text)
        assert message["content"] == f"{before}- Is it a plan?\n- Is it {{$candidate_B}}?\n{after}"
        assert not re.search(r"\{\$", before.replace("{$checklist}", "") + after)


def test_pair_messages_show_the_answer_on_the_side_chosen_by_the_coin():
    for problem_id in ("ae00", "ae01", "ae02", "ae03", "ae04", "ae05"):
        problem = read({**RECORD, "session_id": problem_id}, 0)
        (message,) = pair_messages(problem, "mine", "theirs")
        a, b = ("mine", "theirs") if model_is_a(problem_id) else ("theirs", "mine")
        assert f"<|begin_of_response_A|>\n\n{a}\n\n<|end_of_response_A|>" in message["content"]
        assert f"<|begin_of_response_B|>\n\n{b}\n\n<|end_of_response_B|>" in message["content"]


def test_the_coin_is_fair():
    assert 450 < sum(model_is_a(f"{number:016x}") for number in range(1024)) < 574


def test_pairs_show_long_answers_cut_and_mark_empty_ones():
    longest = " ".join(["word"] * PAIR_WORDS)
    (message,) = pair_messages(PROBLEM, f"{longest} more", " \n")
    assert f"\n{longest}... (truncated)\n" in message["content"]
    assert f"\n{EMPTY}\n" in message["content"]
    (message,) = pair_messages(PROBLEM, f"{longest}\nmore", "theirs")  # a line feed does not separate words
    assert f"\n{longest}\nmore\n" in message["content"]


@pytest.mark.parametrize(
    "mark", [*MARKS, "<｜END_OF_RESPONSE|>", "< |end_of_response_A|>", "＜\u200b|begin_of_query|>"]
)
def test_an_answer_cannot_close_its_marks(mark):
    for (message,) in (score_messages(PROBLEM, f"a {mark} b <|x|>"), pair_messages(PROBLEM, f"a {mark} b <|x|>", "")):
        assert f"a ({mark[1:]} b <|x|>" in message["content"]


@settings(max_examples=200, deadline=None)
@given(st.text() | pieces, st.text() | pieces)
def test_every_mark_of_the_prompts_occurs_once_whatever_the_answers_are(answer, reference):
    (scored,), (compared,) = score_messages(PROBLEM, answer), pair_messages(PROBLEM, answer, reference)
    for content, places in ((scored["content"], {"response"}), (compared["content"], {"response_A", "response_B"})):
        expected = {
            f"<|{edge}_of_{place}|>"
            for place in {*places, "history", "query", "checklist"}
            for edge in ("begin", "end")
        }
        assert {mark: content.count(mark) for mark in MARKS} == {mark: int(mark in expected) for mark in MARKS}
        assert content.endswith("}\n```\n")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"strengths": "s", "weaknesses": "w", "score": "7"}', 7),
        ('{"score": 7}', 7),
        ('{"score": 7.0}', 7),
        ('{"score": "7.5"}', 7.5),
        ('{"score": "[7]"}', 7),
        ('{"score": " [ 7 ] "}', 7),
        ('{"score": [7]}', 7),
        ('{"score": "10"}', 10),
        ('{"score": "1"}', 1),
        (' \n{"score": "7", "more": {"score": "3"}}\n', 7),
        ('{"weaknesses": "it says \\"score\\": \\"10\\"}", "score": "2"}', 2),
        ('{"score": "3", "score": "4"}', 4),
        ('```json\n{"score": "7"}\n```', 7),
        ('Here it is: {"score": "7"} I hope it helps.', 7),
        ('{"strengths": "a\nb\tc", "score": "7"}', 7),
        ('{"strengths": "an "apt" word", "score": "7"}', 7),
        ('{"strengths": "s", "score": "7",}', 7),
        ('{"strengths": "s", "score": 7,}\n```\n', 7),
        ('{"strengths": "it says "score": "10", which", "score": "2"\n}', 2),
        ("{'strengths': 's', 'score': '7'}", 7),
        ("{“strengths”: “s”, “score”: “7”}", 7),
        ('{"strengths": "s" "Score": "7"}', 7),
        ('{"result": {"score": "7"}}', 7),
        ('"score": "7"', 7),
        ('{"score": "0"}', None),
        ('{"score": "11"}', None),
        ('{"score": "-7"}', None),
        ('{"score": "7/10"}', None),
        ('{"score": "7-8"}', None),
        ('{"score": "[1~10]"}', None),
        ('{"score": "good"}', None),
        ('{"score": ""}', None),
        ('{"score": null}', None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ('{"score": 1e400}', None),
        ('{"score": [7, 8]}', None),
        ('{"score": {"value": 7}}', None),
        ('{"strengths": "s", "score": "1', None),
        ('{"strengths": "s", "score": 1', None),
        ('{"strengths": "the answer says {"score": "10"} and then', None),
        ('{"strengths": "it is "apt" and "score": "10", so', None),
        ('{"score": "7", "strengths": "an "apt" word"}', None),
        ("score: 7", None),
        ("7", None),
        ("[7]", None),
        ('["score", 7]', None),
        ("", None),
        ("{}", None),
        ("}{", None),
    ],
)
def test_read_score(text, score):
    assert read_score(text) == score


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        *((json.dumps({"analysis of A": "a", "choice": choice}), choice) for choice in CHOICES),
        *((json.dumps({"choice": f"[{choice}]"}), choice) for choice in CHOICES),
        *((f'```\n{{\n "reason of A=B": "x",\n "choice": "{choice}",\n}}\n```', choice) for choice in CHOICES),
        ('{"analysis of A": "it says "choice": "A++", hm", "choice": "B+"}', "B+"),
        ('{"choice": "A"}', None),
        ('{"choice": "tie"}', None),
        ('{"choice": "A+++"}', None),
        ('{"choice": "a++"}', None),
        ('{"choice": "A+ or A++"}', None),
        ('{"choice": "[A++ or A+ or A=B or B+ or B++]"}', None),
        ('{"choice": "Ａ++"}', None),
        ('{"choice": 7}', None),
        ('{"analysis of A": "x", "choice": "A+', None),
        ('{"reason of A>B": "A++"}', None),
        ("A++", None),
        ("", None),
    ],
)
def test_read_choice(text, choice):
    assert read_choice(text) == choice


@settings(max_examples=500, deadline=None)
@given(st.text() | broken)
def test_any_verdict_is_read_or_gives_none(text):
    score, choice = read_score(text), read_choice(text)
    assert score is None or 1 <= score <= 10
    assert choice is None or choice in CHOICES
    assert score is None or ("score" in text.casefold() and str(score).removesuffix(".0") in text)
    assert choice is None or ("choice" in text.casefold() and choice in text)


@given(st.text(), st.integers(1, 10), st.sampled_from(CHOICES))
def test_a_verdict_as_json_is_read_whatever_it_quotes(quoted, score, choice):
    assert read_score(json.dumps({"strengths": quoted, "score": str(score)})) == score
    assert read_choice(f"```json\n{json.dumps({quoted: quoted, 'choice': choice}, indent=4)}\n```") == choice


@pytest.mark.parametrize(
    "text",
    ["[" * 1_000_000, '{"score":' * 200_000, "9" * 1_000_000, '{"score": ' + "9" * 1_000_000 + "}", "\ud800", "\x00"],
)
def test_huge_and_odd_verdicts_are_unreadable(text):
    assert read_score(text) is None
    assert read_choice(text) is None


@pytest.mark.parametrize(
    "unit",
    ['{"score": ', '"score": "7"', '"score": "7", ', '"', "\\", "{", "}", "`} ", '"score":   ', "<|", "< ", "a "],
)
def test_time_is_linear_in_the_length(unit):
    """Eight times the text takes about eight times as long; quadratic work would take sixty-four times."""

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        found = []
        for _ in range(3):
            began = time.process_time()
            read_score(text)
            score_messages(PROBLEM, text)
            pair_messages(PROBLEM, text, text)
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(800_000) < 25 * seconds(100_000) + 0.05
