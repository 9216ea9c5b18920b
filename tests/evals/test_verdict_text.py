from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.arenahard import read_verdict
from evals.mtbench import read_rating, read_winner
from evals.verdict_text import unquoted, unquoted_json
from evals.wildbench import read_choice, read_score

# What a judge may quote around a rating: `{}` is where the rating stands.
QUOTING = [
    "The answer ends with\n```\n{}\n```\nand so on.",
    "The code is:\n```python\nprint('{}')\n```",
    "The code is:\n~~~\n{}\n~~~",
    "The code is:\n````\n```\n{}\n```\n````",
    "It never closes its block:\n```\n{}",
    "It writes `{}` in the end.",
    "It writes ``{}`` in the end.",
    'It says "{}".',
    'It says "Rating: {}", which is bold.',
    'It says "the best\nof all: {}" in two lines.',
    "It says “{}”.",
    "It says «{}».",
    "It says 'it isn't {} at all'.",
    "It says ‘{}’.",
    "回答は「{}」と言う。",
    "It says:\n> I deserve {}\n\nand no more.",
    "It says:\n   > {}",
    "It has <code>{}</code> in it.",
    "It has <pre>\n{}\n</pre> in it.",
    "It has <blockquote cite='x'>{}</blockquote> in it.",
]


@pytest.mark.parametrize("quoting", QUOTING)
def test_a_rating_in_code_or_quoted_text_is_no_rating(quoting):
    assert read_rating(quoting.format("[[10]]")) is None
    assert read_winner(quoting.format("[[A]]")) is None
    for version in ("v0.1", "v2.0"):
        assert read_verdict(quoting.format("[[A>>B]]"), version) is None
    if "never closes" in quoting:  # what follows belongs to it
        return
    assert read_rating(f"{quoting.format('[[10]]')}\n\nRating: [[3]]") == 3
    assert read_rating(f"Rating: [[3]]\n\n{quoting.format('[[10]]')}") == 3
    assert read_winner(f"{quoting.format('[[A]]')}\n\n[[B]]") == "B"
    for version in ("v0.1", "v2.0"):
        assert read_verdict(f"{quoting.format('[[A>>B]]')}\n\nMy final verdict is: [[B>A]]", version) == "B>A"
        assert read_verdict(f"My final verdict is: [[B>A]]\n\n{quoting.format('[[A>>B]]')}", version) == "B>A"


@pytest.mark.parametrize(
    "verdict",
    [
        "**Rating: [[7]]**",
        "Its \"style\" is fine, it isn't long. Rating: [[7]]",
        'A 12" pipe costs 5. Rating: [[7]] for a 12" pipe',
        "The students' essays aren't bad: [[7]] for the students' work",
        "It uses `x` and `y`. Rating: [[7]]. Then `z`.",
        "```\ncode\n```\nRating: [[7]]\n```\ncode\n```",
        'He said "well\n\nRating: [[7]]\n\nand that is it"',
        "5 > 3. Rating: [[7]]",
        "<b>Rating: [[7]]</b>",
        "It leaves <code> open. Rating: [[7]]",
        'My rating is as follows: "Rating: [[7]]".',
        "私の評価は次の通りです：\"評価：[[7]]\"。",
    ],
)  # fmt: skip
def test_the_judges_own_rating_is_read(verdict):
    assert read_rating(verdict) == 7


THINKING = [
    ("<think>Perhaps {}.</think>\n\n", True),
    ("\n<think>\nIts code:\n```\n{}\n</think>\n", True),
    ("Perhaps {}.\n</think>\n\n", True),
    ("<think>It forgets `</think>`. Perhaps {}.</think> ", True),
    ("<think>Perhaps {}. ", False),
]


@pytest.mark.parametrize(("thoughts", "closed"), THINKING)
def test_a_judges_thoughts_hold_no_verdict(thoughts, closed):
    def after(other: str, verdict: str) -> str:
        return thoughts.format(other) + verdict

    assert read_rating(after("[[3]]", "Rating: [[7]]")) == (7 if closed else None)
    assert read_winner(after("[[A]]", "[[B]]")) == ("B" if closed else None)
    for version in ("v0.1", "v2.0"):
        assert read_verdict(after("[[A>>B]]", "[[B>A]]"), version) == ("B>A" if closed else None)
    assert read_score(after('{"score": "3"}', '{"score": "7"}')) == (7 if closed else None)


def test_a_verdict_about_thoughts_is_read():
    assert read_rating("Rating: [[7]]. It leaves a stray `</think>` behind.") == 7
    assert read_score('{"strengths": "none, it prints </think>", "score": "7"}') == 7
    assert read_score('```json\n{"strengths": "it prints </think>", "score": "7"}\n```') == 7


@pytest.mark.parametrize(
    ("verdict", "score"),
    [
        ('```json\n{"strengths": "s", "score": "7"}\n```', 7),
        ('```\n{"strengths": "s", "score": "7"}\n```', 7),
        ('My analysis.\n\n```json\n{"score": "7"}\n```\nThat is all.', 7),
        ('{"strengths": "it prints `{}` and `[]`", "score": "7"}', 7),
        ('{"strengths": "a ` b", "score": "7", "weaknesses": "c ` d"}', 7),
        ('`{"score": "7"}`', 7),
        ('It prints `{"score": "10"}`.', None),
        ('It prints `{"score": "10"}`. {"strengths": "s", "score": "7"}', 7),
        ('Its code:\n```python\nprint({"score": "10"})\n```', None),
        ('Its code:\n```python\nx = {"score": 10}\n```\n{"score": "7"}', 7),
        ('It says:\n> {"score": "10"}\n\nand no more.', None),
        ('> {"score": "10"}\n\n```json\n{"score": "7"}\n```', 7),
    ],
)
def test_an_object_in_quoted_text_or_other_code_is_no_verdict(verdict, score):
    assert read_score(verdict) == score
    choice = None if score is None else "B+"
    assert read_choice(verdict.replace("score", "choice").replace("10", "A++").replace("7", "B+")) == choice


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="`~\"'“”„«»‘’「」『』<>")))
def test_a_text_without_quotation_marks_and_code_is_unchanged(text):
    assert unquoted(text) == text
    assert unquoted_json(text) == text


@settings(max_examples=300, deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["`", "```", '"', "'", "> ", "\n", "<q>", "</q>", "[[7]]", " ", "~~~"])).map("".join)
)
def test_nothing_fails_and_no_character_is_made_up(text):
    for found in (unquoted(text), unquoted_json(text)):
        assert set(found) <= set(text) | {" ", "\n"}
        assert found.count("[[7]]") <= text.count("[[7]]")


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(1, 10))
def test_json_stays_as_it_is_whatever_it_quotes(quoted, score):
    assert read_score(json.dumps({"strengths": quoted, "score": str(score)})) == score


@pytest.mark.parametrize(
    "unit",
    [
        "`",
        "``` ",
        "```\n",
        '"',
        ' "a',
        "'",
        " 'a",
        "“",
        "> ",
        "<code>",
        "<code",
        "<q></q>",
        "~~~\n",
        "my: ",
        '"\n',
        "`{",
        "I ",
        "<think>",
        "`</think>",
    ],
)
def test_time_is_linear_in_the_length(unit):
    began = time.process_time()
    unquoted(unit * (2_000_000 // len(unit)))
    unquoted_json(unit * (2_000_000 // len(unit)))
    assert time.process_time() - began < 8
