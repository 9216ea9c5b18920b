from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.stated_answers import stated

numbers = st.integers(-(10**6), 10**6)
STATEMENTS = ["The answer is {}.", "**Answer: {}**", "Final answer: {}", "Thus the final answer is ${}$.", "#### {}"]
REMARKS = ["(I checked this in {} ways.)", "Note that {} would not work.", "Confidence: {}", "Check: {} is too much."]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(STATEMENTS), numbers, st.sampled_from(REMARKS), numbers, st.sampled_from([" ", "\n", "\n\n"]))
def test_a_statement_beats_a_number_in_a_remark(statement, answer, remark, other, gap):
    text = f"There are {other} cases.\n{statement.format(answer)}{gap}{remark.format(other)}"
    assert stated(text) == str(answer)


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=6), st.sampled_from([" and ", ", and ", " or ", ", "]))
def test_a_list_in_plain_text_is_read_whole(answers, last):
    listed = ", ".join(map(str, answers[:-1])) + last + str(answers[-1])
    assert stated(f"The possible values are {listed}.") == listed
    assert stated(f"The point is ({', '.join(map(str, answers))}).") == f"({', '.join(map(str, answers))})"
    assert stated(f"So the set is {{{', '.join(map(str, answers))}}}.") == f"{{{', '.join(map(str, answers))}}}"


@settings(max_examples=200, deadline=None)
@given(numbers, st.sampled_from(["and I would go on from there to", "so the sum of the", "which is then divided by"]))
def test_a_text_that_is_cut_off_states_nothing(number, end):
    assert stated(f"I will add them up. Step 1 gives {number} {end}") is None
    assert stated(f"So the first is {number} {end}") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 45. (I checked this in 2 ways.)", "45"),
        ("Therefore the answer is $\\frac{3}{8}$, which is what we found in part 1.", "\\frac{3}{8}"),
        ("The answer is $5 more than $7.", "\\$5"),
        ("She pays $5 for the first and $7 for the second, so $12 in total.", "\\$12"),
        ("The answer is 12 km/h.", "12\\text{ km/h}"),
        ("The answer is 23 percent.", "23\\%"),
        ("The answer is 1011 in base 2.", "1011 base 2"),
        ("12 is the answer. Step 3 shows this.", "12"),
        ("### Summary\n- $\\sqrt{450} = 15\\sqrt{2}$", "\\sqrt{450} = 15\\sqrt{2}"),
        ("Final answer:\n- 12\n", "12"),
        ("Final answer: - 12", "- 12"),
        ("## Answer\n\n42", "42"),
        ("So far 3.\n\n**Answer**\n42 km\n\nNote 5.", "42\\text{ km}"),
        ("## Answer\n\nTo find it, add 3 and 4. The total is 7.", "7"),
        ("## Answer\n\n3 apples cost 5 dollars, 4 cost 6. The total is 12.", "12"),
        ("The correct option is (B).", "(B)"),
        ("The right choice is C, since 3 is odd.", "C"),
        ("I tried 3 ways. <answer>12</answer>", "12"),
        ("<answer>\n$\\frac12$\n</answer>", "\\frac12"),
        ("The answer is three.", "three"),
        ("So the area = 2x +", None),
        ("The answer is that of part 1.", None),
        ("If the answer is 12, then x = 4", None),
        ("I think that is the answer.", None),
        ("", None),
    ],
)
def test_stated(text, answer):
    assert stated(text) == answer


def test_only_what_is_called_final_is_read_if_asked_for():
    assert stated("The answer is 5.", final=True) is None
    assert stated("The final answer is 6. The answer to step 1 was 5.", final=True) == "6"
    assert stated("So the total is 5.", final=True) is None


WORDS = r"""the answer is so x = 5 ( ) [ ] { } $ $$ \[ \] \( \) \boxed{ \frac{1}{2} , . : ; ? ! and or not - + 1 2/3 -7
% km ` ``` ** #### <|im_end|> final answer: therefore because if step 0.333..."""
SCRAPS = [*WORDS.split(), "\n", "\ue000", "␃", "\ud800", "\0"]
scraps = st.lists(st.sampled_from(SCRAPS), max_size=40).map(" ".join)


@settings(max_examples=500, deadline=None)
@given(st.text() | scraps, st.booleans())
def test_reading_never_fails_and_is_deterministic(text, final):
    found = stated(text, final=final)
    assert found == stated(text, final=final)
    assert found is None or found == found.strip() != ""


@pytest.mark.parametrize(
    "unit",
    [
        *("the answer is ", "the answer is 1 ", "answer: ( ", "answer, ", "is the answer 1 ", "so x is 1 and ", "x = "),
        *("1 ", "( ", "$ ", "$1$ ", "\\[ ", "\\begin{a} ", "``` ", "1, ", "a + b = ", "and ", "is 1. ", "9", "**"),
        *("\\frac{", "{1} ", "km ", "#### ", "is ", "? "),
    ],
)
def test_time_does_not_grow_with_the_text(unit):
    began = time.process_time()
    for size in (4_000, 1_000_000):
        stated(unit * (size // len(unit)))
    assert time.process_time() - began < 4
