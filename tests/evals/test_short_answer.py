from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.short_answer import extract, is_correct

words = st.lists(st.sampled_from(["answer", ":", ".", " ", "\n", "ANSWER:", "3.5", "mon", "..", "\u2003"])).map("".join)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("29 + 2 = 31 . answer : 31 .", "31"),
        ("answer : 31", "31"),
        ("answer : 31.", "31"),
        ("Answer: 3.5.", "3.5"),
        ("answer : 3.5 . Bye .", "3.5"),
        ("answer : 4 and 7 .", "4 and 7"),
        ("answer\n  :\n\n 4   and\t7\n.", "4 and 7"),
        ("answer : 1 . wait , answer : 2 .", "2"),
        ("the answer : 1 , no , answer : 2 .", "2"),
        ("Answer: 12\n\nNote that 7 would not work.", "12"),
        ("**Answer: 12**\nConfidence: 95", "12"),
        ("answer : 12 . I checked it in 2 ways .", "12"),
        ("answer : 1 . answer : .", None),
        ("answer :", None),
        ("answers : 5 .", None),
        ("reanswer : 5 .", None),
        ("the answer is 5 .", None),
        ("", None),
        (None, None),
    ],
)
def test_extract(solution, answer):
    assert extract(solution) == answer


@settings(max_examples=300, deadline=None)
@given(st.none() | st.text() | words)
def test_extract_never_raises_and_returns_a_stripped_part_of_the_text(solution):
    found = extract(solution)
    if found is not None:
        assert found == " ".join(found.split()) != ""
        assert found in " ".join((solution or "").split())
        assert extract(f"answer : {found} .") == found or "answer" in found.casefold() or ". " in f"{found} "


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_correct_means_equal_up_to_case_and_white_space(prediction, reference):
    assert is_correct(prediction, prediction)
    assert is_correct(f" {prediction}\n", prediction)
    assert not is_correct(None, reference)
    assert is_correct(prediction, reference) == is_correct(reference, prediction)


def test_correct():
    assert is_correct("Ann  and BOB", "ann and bob")
    assert not is_correct("4 and 7", "7 and 4")
    assert not is_correct("31", "3")
    assert not is_correct("", "3")


@pytest.mark.parametrize(
    ("solution", "reference", "right"),
    [
        ("Answer: U.S.", "U.S.", True),
        ("Answer: J. K. Rowling", "J. K. Rowling", True),
        ("**Answer: J. K. Rowling.** She wrote it.", "J. K. Rowling", True),
        ("answer : st. louis .", "St. Louis.", True),
        ("Answer: No", "No.", True),
        ("Answer: Rene\u0301", "Ren\u00e9", True),
        ("Answer: J. R. Tolkien", "J. K. Rowling", False),
        ("Answer: Dr. Whom", "Dr. Who", False),
        ("Answer: J", "J. K. Rowling", False),
        ("Answer: 3. 4 is wrong.", "3", True),
    ],
)
def test_a_full_stop_in_the_reference_may_be_in_the_answer(solution, reference, right):
    assert is_correct(extract(solution, reference), reference) == right


@pytest.mark.parametrize(
    "unit",
    ["answer : ", "answer ", "answer : 1 . ", "a . ", ". ", " ", "\n\t", "answer:answer :: ", "x" * 9, ".answer:."],
)
def test_time_is_linear_in_the_length(unit):
    """Eight times the text takes about eight times as long; quadratic work would take sixty-four times."""

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        found = []
        for _ in range(3):
            began = time.process_time()
            extract(text)
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(1_600_000) < 25 * seconds(200_000) + 0.05
