r"""Units of measurement in answers: which unit a quantity has, and how large it is beside another.

The text is LaTeX or plain: `12\text{ km}`, `12 km/h`, `\$5`, `90^\circ`, `7 nickels`. What is no known unit, such as
"nickels", is taken off a number too, but it says nothing about its size. Time is linear in the length.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

Dimension = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Unit:
    """A known unit: its size in the base unit of its dimension, such as 1000 and {(metre, 1)} for a kilometre."""

    size: Fraction
    dimension: Dimension


def _table() -> tuple[dict[str, tuple[Fraction, str, int]], dict[str, tuple[Fraction, str, int]]]:
    """Symbols, whose case matters, and names, in lower case and the singular: size, base unit and its power."""
    one = Fraction(1)
    symbols: dict[str, tuple[Fraction, str, int]] = {}
    names: dict[str, tuple[Fraction, str, int]] = {}
    prefixes = {"n": -9, "µ": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9}
    spelt = {"nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "kilo": 3, "mega": 6, "giga": 9}
    scientific = {
        "m": ("metre meter", "metre", 1),
        "g": ("gram gramme", "gram", 1),
        "s": ("second", "second", 1),
        "L": ("litre liter", "metre", 3),
        "N": ("newton", "newton", 1),
        "J": ("joule", "joule", 1),
        "W": ("watt", "watt", 1),
        "V": ("volt", "volt", 1),
        "A": ("ampere amp", "ampere", 1),
        "Hz": ("hertz", "hertz", 1),
        "Pa": ("pascal", "pascal", 1),
        "mol": ("mole", "mole", 1),
        "K": ("kelvin", "kelvin", 1),
    }
    for symbol, (words, base, power) in scientific.items():
        size = Fraction(1, 1000) if symbol == "L" else one
        for prefix, exponent in {"": 0, **prefixes}.items():
            entry = (size * Fraction(10) ** exponent, base, power)
            symbols[prefix + symbol] = entry
            if symbol == "L":
                symbols[prefix + "l"] = entry
        for prefix, exponent in {"": 0, **spelt}.items():
            names |= {prefix + word: (size * Fraction(10) ** exponent, base, power) for word in words.split()}
    inch, pound, minute = Fraction(254, 10_000), Fraction(45_359_237, 100_000), Fraction(60)
    gallon = 231 * inch**3
    others = (
        ("inch in inche", inch, "metre", 1),
        ("foot feet ft", 12 * inch, "metre", 1),
        ("yard yd", 36 * inch, "metre", 1),
        ("mile mi", 63_360 * inch, "metre", 1),
        ("pound lb", pound, "gram", 1),
        ("ounce oz", pound / 16, "gram", 1),
        ("tonne ton", Fraction(1_000_000), "gram", 1),
        ("sec", one, "second", 1),
        ("minute min", minute, "second", 1),
        ("hour hr", 60 * minute, "second", 1),
        ("day", 1440 * minute, "second", 1),
        ("week wk", 7 * 1440 * minute, "second", 1),
        ("month", one, "month", 1),
        ("year yr", Fraction(12), "month", 1),
        ("gallon gal", gallon, "metre", 3),
        ("quart qt", gallon / 4, "metre", 3),
        ("pint", gallon / 8, "metre", 3),
        ("dollar buck usd", one, "dollar", 1),
        ("cent penny pennie ¢", Fraction(1, 100), "dollar", 1),
        ("euro eur €", one, "euro", 1),
        ("£ gbp", one, "pound sterling", 1),
        ("¥ yen", one, "yen", 1),
        ("rupee rs inr ₹", one, "rupee", 1),
        ("degree deg", one, "degree", 1),
        ("radian rad", one, "radian", 1),
        ("celsius", one, "celsius", 1),
        ("fahrenheit", one, "fahrenheit", 1),
        ("ohm", one, "ohm", 1),
        ("am", one, "am", 1),
        ("pm", one, "pm", 1),
        ("dozen", Fraction(12), "", 0),
        ("hundred", Fraction(10**2), "", 0),
        ("thousand", Fraction(10**3), "", 0),
        ("million", Fraction(10**6), "", 0),
        ("billion", Fraction(10**9), "", 0),
        ("trillion", Fraction(10**12), "", 0),
    )
    for words, size, base, power in others:
        names |= dict.fromkeys(words.split(), (size, base, power))
    symbols["h"] = names["hour"]
    return symbols, names


_SYMBOLS, _NAMES = _table()
_COMPOUND = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "kmph": "km/hour", "fps": "foot/second"}
_LETTERS = frozenset("mgshLl")
"""Units of a single letter that are read without \\text{}, where a space is before them: 5 m."""

_LONGEST = 100  # characters of a unit

_TEXT = r"\\(?:text\w*|mathrm|mathbf|mathit|mbox|operatorname|rm)\s*+\{[^{}]*+\}"
_GAP = r"(?:\\[,;:! ]|~|\s)"
_DEGREE = r"(?:\^\s*+(?:\{\s*+\\circ\s*+\}|\\circ\b)|[°º˚]|\\degree\b)"
_POWER = r"(?:\s*+\^\s*+(?:\{\s*+-?\d\s*+\}|-?\d)|[²³])"
_WORD = r"(?<![A-Za-z\\])[A-Za-zµμ][A-Za-zµμ.'-]*+"
_PART = rf"(?:{_TEXT}|{_DEGREE}|{_WORD}|[¢€£¥₹])"
_NEXT = rf"{_GAP}*+(?:[/·-]|\\cdot\b)?+{_GAP}*+{_PART}{_POWER}?+"
_TAIL = re.compile(rf"(?P<gap>{_GAP}*+)(?P<unit>{_PART}{_POWER}?+(?:{_NEXT})*+)\s*+\Z")
_CURRENCY = re.compile(r"^\s*+(?P<sign>[-+]?)\s*+(?P<unit>\\\$|[£€¥₹]|(?:Rs|INR|USD|EUR|GBP)\b\.?)\s*+(?=[\d.\\])")
_FUNCTION = re.compile(r"(?:and|or|pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|inf|infinity|mod|if|not|arc\w+)\Z")
_INNER = re.compile(r"\\(?:text\w*|mathrm|mathbf|mathit|mbox|operatorname|rm)\s*+\{([^{}]*+)\}")
_SCALE = re.compile(rf"(?:{_DEGREE}|\bdegrees?\b)\s*+([CFcf])(?:elsius|ahrenheit)?\b")
_TOKEN = re.compile(r"[A-Za-zµμ¢€£¥₹]+|[/·*-]|\^\s*\{?\s*(-?\d)\s*\}?|[²³]|\S")


def split(text: str) -> tuple[str, str]:
    """The value of a quantity, and its unit as written, empty if it has none. `12\\text{ km}`: ("12", "km")."""
    if currency := _CURRENCY.match(text):
        text = currency["sign"] + text[currency.end() :]
        value, unit = split(text)
        return value, f"{currency['unit']} {unit}".strip()
    start = max(0, len(text) - _LONGEST)
    while tail := _TAIL.search(text, start):
        value, unit = text[: tail.start()].rstrip(), tail["unit"]
        if _is_unit(unit, value, gap=bool(tail["gap"])):
            return value, " ".join(_INNER.sub(r" \1 ", unit).split())
        start = tail.start() + max(1, len(tail["gap"]))
    return text, ""


def bare_letter(text: str) -> tuple[str, str]:
    """As `split`, for a single letter after a space (`5 m`), which is a unit only if it cannot be a variable."""
    found = re.search(rf"(?<=[\d}})])(?:\s+([A-Za-z]){_POWER}?|([A-Za-z])[²³])\s*\Z", text)
    letter = (found[1] or found[2]) if found else ""
    return (text[: found.start()], found[0].strip()) if found and letter in _LETTERS else (text, "")


def known(unit: str) -> Unit | None:
    """The unit that a text such as "km/h", "square feet" or "miles per hour" names; None if part of it is unknown."""
    size, powers, sign, next_power = Fraction(1), Counter[str](), 1, 1
    last: tuple[Fraction, str, int] | None = None
    for token in _TOKEN.finditer(_plain(unit)):
        word = token[0]
        if word in "/·*-":
            sign = -1 if word == "/" else sign
        elif word[0] in "^²³":
            if last is None:
                return None
            more = int(token[1] or "23"["²³".index(word[0])]) - 1 if word[0] != "^" else int(token[1] or 1) - 1
            size *= last[0] ** (sign * more)
            powers[last[1]] += sign * more * last[2]
            last = None
        elif word.lower() == "per":
            sign = -1
        elif word.lower() in ("square", "sq", "cubic", "cu"):
            next_power = 2 if word.lower().startswith("sq") else 3
        elif word.lower() in _COMPOUND:
            compound = known(_COMPOUND[word.lower()])
            assert compound is not None
            size *= compound.size
            powers.update(dict(compound.dimension))
        else:
            last = _entry(word)
            if last is None:
                return None
            size *= last[0] ** (sign * next_power)
            powers[last[1]] += sign * next_power * last[2]
            next_power = 1
    found = frozenset((base, power) for base, power in powers.items() if power)
    return Unit(size, found) if powers else None


def _plain(unit: str) -> str:
    unit = _SCALE.sub(lambda found: " celsius " if found[1] in "Cc" else " fahrenheit ", unit.replace("μ", "µ"))
    unit = re.sub(_DEGREE, " degree ", unit).replace("\\$", " dollar ").replace("\\cdot", "·")
    return re.sub(r"\b([ap])\.\s?m\b", r"\1m", unit, flags=re.IGNORECASE).replace(".", " ")


def _entry(word: str) -> tuple[Fraction, str, int] | None:
    lower = word.lower()
    found = _SYMBOLS.get(word) or _NAMES.get(lower) or (_NAMES.get(lower[:-1]) if lower.endswith("s") else None)
    return found or (_SYMBOLS.get(lower) if len(word) > 1 else None)  # KM


def _is_unit(unit: str, value: str, *, gap: bool) -> bool:
    """Whether what ends a text is a unit of its value, and not a variable, a function or the answer itself."""
    if not value or not re.search(r"\d|\\(?:frac|sqrt|pi)\b|[A-Za-z]\s*\Z", value) or value[-1] in "+-*/^_=<>({[,&\\":
        return False
    words, inner = re.findall(_WORD, _INNER.sub(" ", unit)), _INNER.sub(r" \1 ", unit)
    is_known = known(inner) is not None
    if not is_known and any(len(word) == 1 for word in re.findall("[A-Za-z]+", inner)):
        return False  # 5\\text{i}
    if not words:
        return bool(_INNER.search(unit) or not re.search(_DEGREE, unit) or re.search(r"\d\s*\Z", value))
    if any(_FUNCTION.match(word) for word in words) or not re.search(r"(?:[\d)}\]]|\\pi)\s*\Z", value):
        return False
    if is_known:
        return len(words[0]) > 1 or (gap and "/" in unit) or bool(_SCALE.fullmatch(unit))  # 30°C
    return gap and all(len(word) > 2 and re.search("[aeiouyAEIOUY]", word) for word in words if word != "of")
