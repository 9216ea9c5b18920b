from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.everyday import DAYS, extract, is_correct


@pytest.mark.parametrize(
    ("solution", "reference", "answer"),
    [
        ("15 + 27 = 42", "42", "42"),
        ("The answer is 12 (not 13).", "12", "12"),
        ("The answer is 12. I checked it 3 times.", "12", "12"),
        ("8-3=5", "5", "5"),
        ("3 - 7 = -4", "-4", "-4"),
        ("It costs $1,234.50.", "1234.5", "1234.50"),
        ("**Answer:** 7 apples", "7", "7"),
        ("The numbers are 3, 9 and 5. The largest of them is 9.", "9", "9"),
        ("It is Friday, 3 days later.", "Friday", "friday"),
        ("From Monday, the answer is Sunday, not Monday.", "Sunday", "sunday"),
        ("No idea.", "3", None),
        ("Sunday", "3", None),
        ("3", "Sunday", None),
        ("In 10 days from Monday: 10 mod 7 = 3. The answer is Thursday.", "", "thursday"),
        ("It is Friday.", "", "friday"),
        ("From Monday, 3 days: 8 - 3 = 5", "", "5"),
        ("", "3", None),
        (None, "3", None),
    ],
)
def test_the_answer_is_found_wherever_it_stands(solution, reference, answer):
    assert extract(solution, reference) == answer
    assert is_correct(answer, reference or answer or "") == (answer is not None)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("-$5", "-5"),
        ("It is \u2212$5.", "-5"),
        ("$-5", "-5"),
        ("-\\$1,000", "-1000"),
        ("$10 - $3", "3"),
        ("$10-$3", "3"),
        ("\u20b9 500", "500"),
        ("1 000", "1000"),
        ("1'234'567.5", "1234567.5"),
        ("1\u2019234", "1234"),
        ("1\u202f234 or 12\u00a0345", "12345"),
        ("1 0000", "0000"),
        ("1,000 200", "200"),
        ("1.5e3", "1.5e3"),
        ("2E\u22123", "2e-3"),
    ],
)
def test_a_number_has_its_sign_its_groups_and_its_exponent(solution, answer):
    assert extract(solution, "7") == answer


@pytest.mark.parametrize(
    ("solution", "reference", "right"),
    [
        ("-$5", "5", False),
        ("-$5", "-5", True),
        ("1 000", "0", False),
        ("1 000", "1000", True),
        ("1.5e3", "1.5", False),
        ("1.5e3", "1,500", True),
        ("5", "$5", True),
        ("12", "1/2", False),
    ],
)
def test_numbers_are_compared_by_value(solution, reference, right):
    assert is_correct(extract(solution, reference), reference) == right


def test_a_wrong_answer_is_wrong_in_either_form():
    assert not is_correct(extract("The answer is 13.", "12"), "12")
    assert not is_correct(extract("12 + 1 = 13", "12"), "12")
    assert not is_correct(extract("Monday, then Tuesday", "Monday"), "Monday")


@given(st.text(), st.sampled_from(["7", "-3.5", *DAYS]))
def test_any_text_is_graded(text, reference):
    assert is_correct(extract(text, reference), reference) in (True, False)


@given(st.integers(-10_000, 10_000), st.sampled_from(["The answer is {}.", "So it is {}", "7 + 3 = {} dollars."]))
def test_a_number_as_written_by_anyone_is_read(number, sentence):
    for written in (str(number), f"{number:,}", f"{number}.0"):
        assert is_correct(extract(sentence.format(written), str(number)), str(number))
