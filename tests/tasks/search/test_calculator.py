"""The calculator: which marked calculations are wrong, and that no text can do more than arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.processes.limited import Limited
from tasks.search.calculator import MARKED, MEMORY_BYTES, TIMEOUT_S, begun, corrected, value_of

numbers = st.integers(0, 999).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48/2", 24),
        ("2 + 3 * 4 - 1", 13),
        ("-2^2", -4),
        ("2^-1", Fraction(1, 2)),
        ("(1 + 2) × 3 ÷ 9", 1),
        ("$1,234.50 + .5", 1235),
        ("200*15%", 30),
        ("2**3**2", 512),
        ("10 − 4", 6),
    ],
)
def test_arithmetic_is_exact(text: str, value: Fraction) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "fixed", "rest"),
    [
        ("half is <<48/2=25>>25. So 25.", "half is <<48/2=24>>", "25. So 25."),
        ("<<1+1=2>> <<2+2=5>> <<3+3=7>>", "<<1+1=2>> <<2+2=4>>", " <<3+3=7>>"),
        ("<<10/3=3.4>>", "<<10/3=3.333333>>", ""),
        ("<<7/2=3>>", "<<7/2=3.5>>", ""),
        ("<<1/10=6.5/100>>", "<<1/10=0.1>>", ""),
        ("<<0-7/3=2>>", "<<0-7/3=-2.333333>>", ""),
        ("<<100000000000000/3=1>>", "<<100000000000000/3=33333333333333.333333>>", ""),
    ],
)
def test_the_text_is_cut_after_the_first_wrong_calculation(text: str, fixed: str, rest: str) -> None:
    assert corrected(text) == (fixed, rest)


@pytest.mark.parametrize(
    "text",
    [
        "She has 48/2 = 25.",  # not marked
        "half is <<48/2=24>>24.",
        "<<10/3=3.33>>",  # rounded
        "<<20/3=6.66>>",  # cut off
        "<<1/3=33.3%>>",
        "<<3*$5=$15>>",
        "<<x+1=3>> <<1/0=0>> <<=3>> <<1+=2>> <<(1=1>> <<9^999999=1>> <<1 2=3>>",
        "<<100-20%=80>>",  # 80 or 99.8
        "<<1/10000000=1>>",  # too small to be written in six decimals
        "<<999*999*999*999*999*999/7=1>>",  # too large
        "<<(9^64)^64=1>>",
        "<<__import__('os')=1>>",
        "<<" + "(" * 199 + "=1>>",
    ],
)
def test_what_is_right_or_cannot_be_read_is_left_alone(text: str) -> None:
    assert corrected(text) is None


@pytest.mark.parametrize(
    ("text", "open_"),
    [("so <<48/2=", "<<48/2="), ("<<1=1>> and <<", "<<"), ("<<1=1>> and", ""), ("", ""), ("<<" + "1" * 300, "")],
)
def test_a_calculation_that_goes_on_is_known(text: str, open_: str) -> None:
    assert begun(text) == open_


@given(expressions)
def test_values_are_those_of_python(text: str) -> None:
    try:
        expected = eval(text, {"__builtins__": {}}, {})  # noqa: S307  # digits and signs of this test
    except (ZeroDivisionError, SyntaxError):  # Python has no 007
        return
    assert float(value_of(text)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.text(max_size=80), expressions, numbers)
def test_what_is_corrected_is_right(text: str, expression: str, written: str) -> None:
    marked = f"{text} <<{expression}={written}>> and so on"
    once = corrected(marked)
    if once is not None:
        fixed, rest = once
        assert fixed.endswith(">>")
        assert marked.endswith(rest)
        assert corrected(fixed) is None
        assert len(MARKED.findall(fixed)) <= len(MARKED.findall(marked))


def test_it_is_called_in_a_process_with_limits() -> None:
    with Limited("tasks.search.calculator:corrected", timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES) as child:
        assert child("<<" + "*".join(["999^64"] * 30) + "=1>>") is None
        assert child("<<1+1=3>> so") == ["<<1+1=2>>", " so"]
