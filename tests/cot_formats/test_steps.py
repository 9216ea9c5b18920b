"""Step-by-step solutions: examples, and properties of every text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_formats.steps import VIOLATIONS, Steps

PARAGRAPHS = Steps()
WORDS = Steps(delimiter=" .", answer="answer :")
FRAGMENTS = ["\n\n", "\n", " .", ".", " ", "\\boxed{1}", "answer :", "so x = 2", "word", "\x1c", "\u2028"]
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))
formats = st.sampled_from([PARAGRAPHS, WORDS, Steps("\n", "####")])


def names(text: str, format: Steps = PARAGRAPHS) -> list[str]:
    return [each.name for each in format.parse(text).violations]


def test_paragraphs_are_steps_and_the_last_states_the_answer() -> None:
    text = "First, 2 + 3 = 5.\n\nThen 5 x 2 = 10.\nThat is all.\n\nSo it is \\boxed{10}."
    parsed = PARAGRAPHS.parse(text)
    assert parsed.ok
    assert parsed.steps == ("First, 2 + 3 = 5.", "Then 5 x 2 = 10.\nThat is all.", "So it is \\boxed{10}.")
    assert PARAGRAPHS.render(parsed.steps) == text


def test_a_delimiter_of_words_is_a_part_of_its_step() -> None:
    text = "0 + 2 = 2 . 2 + 9 = 11 . answer : 11 ."
    assert WORDS.split(text) == ["0 + 2 = 2 .", " 2 + 9 = 11 .", " answer : 11 ."]
    assert WORDS.parse(text).steps == ("0 + 2 = 2 .", "2 + 9 = 11 .", "answer : 11 .")
    assert WORDS.render(WORDS.parse(text).steps) == text


@pytest.mark.parametrize(
    ("text", "violations"),
    [
        ("", ["no_steps"]),
        (" \n\n ", ["no_steps"]),
        ("One.\n\nTwo.", ["missing_answer"]),
        ("\\boxed{1}\n\nMore.", ["answer_before_the_end"]),
        ("Same.\n\nSame.\n\n\\boxed{1}", ["repeated_step"]),
        ("Same.\n\nOther.\n\nSame.\n\n\\boxed{1}", []),
        ("One.\n\n\n\n\\boxed{1}\n\n", []),
        ("I will put it in \\boxed{}.\n\nTwo.\n\n\\boxed{2}", []),
        ("One.\n\n\\boxed{ }", ["missing_answer"]),
        ("One.\n\n\\boxed{", ["missing_answer"]),
        ("One, not \\boxed{}.\n\nNot \\boxed{}, but \\boxed{{1}}", []),
    ],
)
def test_faults_have_names(text: str, violations: list[str]) -> None:
    assert names(text) == violations


@pytest.mark.parametrize(
    "steps",
    [
        [],
        ["", "\\boxed{1}"],
        [" a", "\\boxed{1}"],
        ["a\n\nb", "\\boxed{1}"],
        ["a"],
        ["\\boxed{1}", "a"],
        ["a", "a", "\\boxed{1}"],
    ],
)
def test_steps_that_would_not_be_read_back_are_refused(steps: list[str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        PARAGRAPHS.render(steps)


def test_an_empty_bracket_states_no_answer() -> None:
    assert not PARAGRAPHS.states_answer("I will put the final answer in \\boxed{}.\n\n")
    assert PARAGRAPHS.states_answer("So it is \\boxed{ 7 }.\n\n")
    assert not Steps(answer="ANSWER[").states_answer("I will write ANSWER[ ].")
    assert Steps(answer="Answer above").states_answer("Answer above")


def test_a_format_without_delimiter_or_answer_is_refused() -> None:
    for given_ in ({"delimiter": ""}, {"answer": " "}):
        with pytest.raises(ValueError, match="needs a delimiter"):
            Steps(**given_)


@given(formats, texts)
def test_the_pieces_are_the_text(format: Steps, text: str) -> None:
    pieces = format.split(text)
    assert "".join(pieces) == text
    assert all(format.bare(piece) for piece in pieces[1:])


@given(formats, texts)
def test_violations_are_known_and_in_the_text(format: Steps, text: str) -> None:
    parsed = format.parse(text)
    assert all(each.name in VIOLATIONS and 0 <= each.offset <= len(text) for each in parsed.violations)
    assert [each.offset for each in parsed.violations] == sorted(each.offset for each in parsed.violations)
    assert len({each.name for each in parsed.violations}) == len(parsed.violations)


@given(formats, st.lists(texts, max_size=6))
def test_parse_undoes_render(format: Steps, steps: list[str]) -> None:
    try:
        text = format.render(steps)
    except ValueError:
        return
    assert format.parse(text).ok
    assert format.parse(text).steps == tuple(steps)


@given(formats, texts)
def test_what_is_parsed_without_fault_can_be_rendered(format: Steps, text: str) -> None:
    """A step that begins with the words of the delimiter (".5") is refused: after a space they would be a delimiter."""
    parsed = format.parse(text)
    words = format.delimiter.strip()
    if parsed.ok and all(step.endswith(words) and not (words and step.startswith(words)) for step in parsed.steps):
        assert format.parse(format.render(parsed.steps)).steps == parsed.steps
