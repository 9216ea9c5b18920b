"""The calculator: which marked calculations are wrong, and that no text can do more than arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.processes.limited import Limited, NoResult
from tasks.search.calculator import MARKED, MEMORY_BYTES, TIMEOUT_S, corrected, value_of

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
    ("text", "result"),
    [
        ("She has 48/2 = 25.", None),  # not marked
        ("half is <<48/2=24>>24.", None),
        ("half is <<48/2=25>>25. So 25.", "half is <<48/2=24>>"),
        ("<<1+1=2>> <<2+2=5>> <<3+3=7>>", "<<1+1=2>> <<2+2=4>>"),
        ("<<10/3=3.33>>", None),  # rounded
        ("<<20/3=6.66>>", None),  # cut off
        ("<<10/3=3.4>>", "<<10/3=3.333333>>"),
        ("<<7/2=3>>", "<<7/2=3.5>>"),
        ("<<1/3=33.3%>>", None),
        ("<<3*$5=$15>>", None),
        ("<<x+1=3>> <<1/0=0>> <<=3>> <<1+=2>> <<(1=1>> <<9^999999=1>> <<1 2=3>>", None),
        ("<<__import__('os')=1>>", None),
        ("<<" + "(" * 199 + "=1>>", None),
    ],
)
def test_the_text_is_cut_after_the_first_wrong_calculation(text: str, result: str | None) -> None:
    assert corrected(text) == result


@given(expressions)
def test_values_are_those_of_python(text: str) -> None:
    try:
        expected = eval(text.translate({}), {"__builtins__": {}}, {})  # noqa: S307  # digits and signs of this test
    except (ZeroDivisionError, SyntaxError):  # Python has no 007
        return
    assert float(value_of(text)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.text(max_size=80), expressions, numbers)
def test_what_is_corrected_is_right(text: str, expression: str, written: str) -> None:
    marked = f"{text} <<{expression}={written}>> and so on"
    once = corrected(marked)
    if once is not None:
        assert once.endswith(">>")
        assert corrected(once) is None
        assert len(MARKED.findall(once)) <= len(MARKED.findall(marked))


def test_an_endless_calculation_ends() -> None:
    nested = "9" + "^64" * 12
    with Limited("tasks.search.calculator:corrected", timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES) as child:
        assert isinstance(child(f"<<({nested})^64=1>>"), NoResult | None)
        assert child("<<1+1=3>>") == "<<1+1=2>>"
