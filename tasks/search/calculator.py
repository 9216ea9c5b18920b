"""A calculator for a policy's steps: arithmetic in marked expressions, `<<48/2=24>>`, the annotations of GSM8K.

STILL-1 gives its search a calculator, and publishes no format of the calls. Model text is untrusted: expressions are
parsed here, nothing is evaluated as code, and `corrected` is called in a process with limits on time and memory.
"""

from __future__ import annotations

import re
from fractions import Fraction

MARKED = re.compile(r"<<([^<>=\n]{1,200})=([^<>=\n]{1,60})>>")
"""A marked calculation: the expression, and the value that the policy wrote."""
TIMEOUT_S = 2.0
MEMORY_BYTES = 1 << 30
_TOKEN = re.compile(r"\s*(\d+\.\d*|\.\d+|\d+|\*\*|[-+*/()^%])")
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "$": " ", "€": " ", "£": " "})
_NUMBER = re.compile(r"\s*[-+]?[\d,]*\.?(\d*)\s*%?\s*")
_RELATIVE = re.compile(r"[-+]\s*[\d.]+\s*%")  # "100 - 20%" is 80 to some, and 99.8 to others
_LARGEST_EXPONENT = 64
_MOST_BITS = 4_096  # of a power
_DECIMALS = 6  # of a value that the calculator writes
_TOO_LARGE = 10**15
_LONGEST = 270  # characters of a marked calculation


def value_of(text: str) -> Fraction:
    """The value of an arithmetic expression: numbers, + - * / ^ **, per cent, parentheses and currency signs.

    Raises:
        ValueError: it is none, a percentage is added or subtracted, an exponent is not a whole number of at most 64,
            or a power is too large.
        ZeroDivisionError: it divides by zero.
        RecursionError: parentheses are nested too deeply.
    """
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.translate(_SIGNS))
    if _RELATIVE.search(plain):
        raise ValueError(f"{text!r} adds or subtracts a percentage, of which it does not say")
    tokens, at = list[str](), 0
    while plain[at:].strip():
        found = _TOKEN.match(plain, at)
        if not found:
            raise ValueError(f"{text!r} is no arithmetic")
        tokens.append(found[1])
        at = found.end()
    tokens.reverse()
    value = _sum(tokens)
    if tokens:
        raise ValueError(f"{text!r} is no arithmetic")
    return value


def _next_is(tokens: list[str], *which: str) -> str:
    """The next token, taken, if it is one of these; else ""."""
    return tokens.pop() if tokens and tokens[-1] in which else ""


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while sign := _next_is(tokens, "+", "-"):
        term = _product(tokens)
        value = value + term if sign == "+" else value - term
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _signed(tokens)
    while sign := _next_is(tokens, "*", "/"):
        factor = _signed(tokens)
        value = value * factor if sign == "*" else value / factor
    return value


def _signed(tokens: list[str]) -> Fraction:
    if sign := _next_is(tokens, "-", "+"):
        value = _signed(tokens)
        return -value if sign == "-" else value
    return _power(tokens)


def _power(tokens: list[str]) -> Fraction:
    if _next_is(tokens, "("):
        value = _sum(tokens)
        if not _next_is(tokens, ")"):
            raise ValueError("a parenthesis is not closed")
    elif tokens and tokens[-1][0] in ".0123456789":
        value = Fraction(tokens.pop().rstrip(".").rjust(1, "0"))
    else:
        raise ValueError("a number is missing")
    while _next_is(tokens, "%"):
        value /= 100
    if _next_is(tokens, "^", "**"):
        exponent = _signed(tokens)
        if exponent.denominator != 1 or abs(exponent) > _LARGEST_EXPONENT:
            raise ValueError(f"exponent {exponent}: expected a whole number of at most {_LARGEST_EXPONENT}")
        if max(value.numerator.bit_length(), value.denominator.bit_length()) * abs(exponent) > _MOST_BITS:
            raise ValueError("a power is too large")
        return value ** int(exponent)
    return value


def is_right(value: Fraction, written: str) -> bool:
    """Whether a written value is that of the expression; a number with decimals may be rounded, or cut off after them.

    Raises as `value_of`.
    """
    read = value_of(written)
    number = _NUMBER.fullmatch(written.translate(_SIGNS))
    decimals = len(number[1]) if number and number[1] else 0
    last = Fraction(1, 10**decimals) / (100 if "%" in written else 1)
    is_cut_off = read * value >= 0 and 0 <= abs(value) - abs(read) < last
    return value == read or (decimals > 0 and (is_cut_off or abs(value - read) <= last / 2))


def shown(value: Fraction) -> str | None:
    """A value in digits: exact if it is whole, else rounded to six decimals; None if it is too large or too small."""
    scaled = round(abs(value) * 10**_DECIMALS)
    if abs(value) >= _TOO_LARGE or (value and not scaled):
        return None
    whole, rest = divmod(scaled, 10**_DECIMALS)
    digits = f"{whole}.{rest:0{_DECIMALS}d}".rstrip("0").rstrip(".")
    return f"-{digits}" if value < 0 else digits


def corrected(text: str) -> tuple[str, str] | None:
    """The text up to its first wrong calculation, which has the right value now, and what followed it; None if no
    calculation is wrong.

    Calculations that cannot be read, or whose value cannot be written in a few digits, are left alone.
    """
    for found in MARKED.finditer(text):
        expression, written = found.groups()
        try:
            value = value_of(expression)
            right = is_right(value, written)
        except (ValueError, ArithmeticError, RecursionError):
            continue
        if not right and (digits := shown(value)) is not None:
            return f"{text[: found.start()]}<<{expression}={digits}>>", text[found.end() :]
    return None


def begun(text: str) -> str:
    """The calculation that is begun at the end of a text, and goes on in what follows; "" if there is none."""
    tail = text[-_LONGEST:]
    at = tail.rfind("<<")
    return tail[at:] if at >= 0 and ">>" not in tail[at:] else ""
