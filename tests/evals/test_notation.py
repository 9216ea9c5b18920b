from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.notation import numeral, plain, rewritten

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
decimals = st.tuples(
    st.integers(0, 999), st.text("0123456789", max_size=4), st.text("0123456789", min_size=1, max_size=6)
)


def fraction(value):
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


@settings(max_examples=300, deadline=None)
@given(decimals)
def test_a_repeating_decimal_is_a_fraction(parts):
    whole, fixed, block = parts
    value = Fraction(int(f"{whole}{fixed}{block}") - int(f"{whole}{fixed}"), 10 ** len(fixed) * (10 ** len(block) - 1))
    for form in (
        rf"\overline{{{block}}}",
        rf"\bar{{{block}}}",
        f"({block})",
        "".join(f"{each}\u0305" for each in block),
    ):
        assert rewritten(f"{whole}.{fixed}{form}") == fraction(value)
    ends = rf"\dot{{{block[0]}}}{block[1:-1]}\dot{{{block[-1]}}}" if len(block) > 1 else rf"\dot{{{block}}}"
    assert rewritten(f"{whole}.{fixed}{ends}") == fraction(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.333...", Fraction(1, 3)),
        ("0.1666\\ldots", Fraction(1, 6)),
        ("0.1212…", Fraction(4, 33)),
        ("0.142857142857...", Fraction(1, 7)),
        ("3.\\overline 3", Fraction(10, 3)),
    ],
)
def test_dots_after_repeated_digits_repeat_them(text, value):
    assert rewritten(text) == fraction(value)


@pytest.mark.parametrize("text", ["0.12", "0.3", "12.500", "\\overline{AB}", "\\bar{x}", "f(3)", "2(3)"])
def test_other_numbers_stay(text):
    assert rewritten(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10\\,080", "10080"),
        ("12^{\\mathrm{th}}", "12"),
        ("3rd", "3"),
        ("4st", "4st"),
        ("2 1/3", "2\\frac{1}{3}"),
        ("33\\frac13\\%", "\\frac{100}{3}\\%"),
        ("<1, 2>", "(1, 2)"),
        ("\\langle 1, 2 \\rangle", "( 1, 2 )"),
        ("±4", "\\pm 4"),
        ("x¹²y⁻³", "x^{12}y^{-3}"),
        ("2¾", "2\\frac{3}{4}"),
        ("-1.5E-3", "-1.5 \\cdot 10^{-3}"),
        ("1e4_{16}", "1e4_{16}"),
        ("\\approx 7", "7"),
        ("12’345.5", "12345.5"),
        ("16,25,196", "16,25,196"),
        ("Seventeen", "17"),
        ("one-third", "\\frac{1}{3}"),
    ],
)
def test_rewritten(text, expected):
    assert rewritten(text) == expected


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**12), st.integers(2, 36))
def test_a_numeral_is_its_digits_and_its_base(number, base):
    digits, rest = "", number
    while rest or not digits:
        rest, digit = divmod(rest, base)
        digits = DIGITS[digit] + digits
    for form in (
        f"{digits}_{{{base}}}",
        f"({digits})_{{{base}}}",
        f"{digits} (base {base})",
        f"\\text{{{digits}}}_{{{base}}}",
    ):
        assert numeral(form) == (digits, base)
    assert numeral(digits) == (digits, None)


@pytest.mark.parametrize("text", ["x_1", "a_2", "12.5", "\\frac12", "2_1", "9_8", "1+1_2", "", "_2"])
def test_what_is_no_numeral(text):
    assert numeral(text) is None


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_nothing_fails(text):
    rewritten(text)
    plain(text)
    numeral(text)


@pytest.mark.parametrize(
    "unit", ["9", ".9", "0.9", "0.99", "\\dot", "\\dot{1}", "9(", " 9", "A ", "_", "1 ", "\\text{", "9,"]
)
def test_long_texts_take_little_time(unit):
    for end in ("", "...", "_2", "\\overline{3}", "(3)", "!"):
        text = unit * (1_000 // len(unit)) + end
        rewritten(text)
        numeral(text)
