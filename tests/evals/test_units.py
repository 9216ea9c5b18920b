from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.units import bare_letter, known, split


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("12\\text{ km}", "12", "km"),
        ("12 km/h", "12", "km/h"),
        ("12cm", "12", "cm"),
        ("8\\pi\\text{ cm}^2", "8\\pi", "cm ^2"),
        ("\\$5", "5", "\\$"),
        ("-\\$5", "-5", "\\$"),
        ("90^\\circ", "90", "^\\circ"),
        ("20^\\circ\\text{C}", "20", "^\\circ C"),
        ("7 nickels", "7", "nickels"),
        ("60 miles per hour", "60", "miles per hour"),
        ("\\frac{270}7\\text{ degrees}", "\\frac{270}7", "degrees"),
        ("5t", "5t", ""),
        ("3+5t", "3+5t", ""),
        ("4ab", "4ab", ""),
        ("5\\text{i}", "5\\text{i}", ""),
        ("5 m", "5 m", ""),
        ("4 and 5", "4 and 5", ""),
        ("x \\text{ or } y", "x \\text{ or } y", ""),
        ("\\text{no solution}", "\\text{no solution}", ""),
        ("\\text{June 20}", "\\text{June 20}", ""),
        ("\\sin x", "\\sin x", ""),
        ("", "", ""),
    ],
)
def test_split(text, value, unit):
    assert split(text) == (value, unit)


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        ("km", "m", 1000),
        ("hours", "minutes", 60),
        ("feet", "inches", 12),
        ("yd", "ft", 3),
        ("dollars", "cents", 100),
        ("L", "cm^3", 1000),
        ("km/h", "m/s", Fraction(5, 18)),
        ("square feet", "in^2", 144),
        ("mph", "miles per hour", 1),
        ("cm²", "square centimeters", 1),
        ("m s^{-1}", "m/s", 1),
        ("KM", "kilometres", 1),
        ("million", "thousand", 1000),
    ],
)
def test_known_units_of_one_dimension(one, other, ratio):
    a, b = known(one), known(other)
    assert a is not None
    assert b is not None
    assert a.dimension == b.dimension
    assert a.size / b.size == ratio


@pytest.mark.parametrize(
    ("one", "other"),
    [("cm", "cm^2"), ("kg", "m"), ("^\\circ C", "^\\circ F"), ("radians", "^\\circ"), ("a.m.", "p.m."), ("\\$", "€")],
)
def test_known_units_that_differ(one, other):
    a, b = known(one), known(other)
    assert a is not None
    assert b is not None
    assert a.dimension != b.dimension


@pytest.mark.parametrize("unit", ["", "nickels", "square units", "x", "km of", "^2", "(m)"])
def test_what_is_no_known_unit(unit):
    assert known(unit) is None


def test_a_bare_letter_is_a_unit_only_after_a_space():
    assert bare_letter("5 m") == ("5", "m")
    assert bare_letter("1,000.99m²") == ("1,000.99", "m²")
    for text in ("5m", "5 x", "m", "5 m + 1"):
        assert bare_letter(text) == (text, "")


SCRAPS = [
    "\\text{",
    "}",
    "{",
    " ",
    "km",
    "m",
    "/",
    "^",
    "2",
    "5",
    "²",
    "\\$",
    "°",
    "^\\circ",
    "per",
    "square",
    "-",
    "x",
    "\\,",
    ".",
]
texts = st.text(max_size=60) | st.lists(st.sampled_from(SCRAPS), max_size=20).map("".join)


@settings(max_examples=500, deadline=None)
@given(texts)
def test_splitting_never_fails_and_loses_no_number(text):
    value, unit = split(text)
    assert value == text or value
    known(text)
    known(unit)
    bare_letter(text)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**9), 10**9), st.sampled_from(["km", "hours", "square feet", "m/s", "nickels"]))
def test_a_number_and_its_unit_come_apart(number, unit):
    assert split(f"{number} {unit}") == split(f"{number}\\text{{ {unit}}}") == (str(number), unit)


@pytest.mark.parametrize("unit", ["a ", "km ", "\\text{ km} ", "km/", "1 ", "^2", "- ", "°", "\\,", "m^2 "])
def test_long_texts_take_little_time(unit):
    text = unit * (1_000 // len(unit))
    for each in (text, f"5 {text}", f"5 {text}!"):
        split(each)
        known(each)
