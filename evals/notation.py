r"""Ways to write a number or a formula, rewritten so that math-verify reads them; and numerals with a base.

Pure functions over texts of at most 1,000 characters; they raise nothing.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

WRAPPED = re.compile(r"\\(?:text\w*|math(?:rm|bf|it|sf|tt)|mbox|emph)\s*\{([^{}]*)\}")
DELIMITER = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
_GROUPED = re.compile(r"\s*[-+]?\d{1,3}([ '’])\d{3}(?:\1\d{3})*(?:\.\d+)?\s*")
_INDIAN_OR_DOTTED = re.compile(r"[-+]?(?:\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:\.\d{3}){2,})")
_ORDINAL = r"(?:(?<=1)st|(?<=2)nd|(?<=3)rd|th)"
_ENDING = r"(?:st|nd|rd|th)"
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")

_SYMBOLS = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {  # full-width ASCII
    ord(symbol): latex
    for symbol, latex in {
        **dict.fromkeys("−–", "-"),
        **dict.fromkeys("·⋅", r"\cdot "),
        **dict.fromkeys("\u00a0\u2009\u202f", "~"),
        **dict.fromkeys("°º˚", r"^\circ "),
        **dict(zip("×÷π∞±", (r"\times ", r"\div ", r"\pi ", r"\infty ", r"\pm "), strict=True)),
        **dict(zip("≤≥≠", (r"\le ", r"\ge ", r"\ne "), strict=True)),
        **dict(zip("∪∩∈∅", (r"\cup ", r"\cap ", r"\in ", r"\emptyset "), strict=True)),
        **dict(zip("⟨⟩", ("(", ")"), strict=True)),
    }.items()
}
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)%", r"\\%"),
        (r"\A\s*(?:\\(?:approx|simeq)\b|[≈≃=])\s*", ""),
        (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)", r"\1 \\cdot 10^{\2}"),
        (r"[£€¥₹]|(?<=\d)\s*dollars?\b", ""),
        (r"\\\\\[[^\]]*\]", r"\\\\"),  # a matrix's \\[2pt]
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(\w+)", r"\\sqrt{\1}"),
        (r"\A\s*<([^<>]*,[^<>]*)>\s*\Z", r"(\1)"),
        (r"\\varnothing\b", r"\\emptyset "),
        (r"\\(?:left\s*)?\\?langle\b", "("),
        (r"\\(?:right\s*)?\\?rangle\b", ")"),
        (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
        (r"\\(?:mathrm|text)\s*\{\s*([ie])\s*\}", r"\1"),  # math-verify would drop the i of 5\text{i} as a unit
        (r"(?<=\d)(?:\\[,;:! ]|~)\s*(?=\d{3}(?!\d))", ""),  # 10\,080
        (r"(?<![\d./])(\d+) (\d+)\s*/\s*(\d+)(?![\d./])", r"\1\\frac{\2}{\3}"),  # 2 1/3
        # 12^{\mathrm{th}}, 12^{th} and 12th
        (rf"(?<=\d)\s*\^?\s*(\{{)?\s*\\(?:text|mathrm)\s*\{{\s*{_ENDING}\s*\}}(?(1)\s*\}})", " "),
        (rf"(?<=\d)(?:\s*\^\s*\{{\s*{_ENDING}\s*\}}|{_ORDINAL}\b)", " "),
        (r"(?:(?<!\\right)\.|[,;:]|\\[\\ ]|\s)+$", ""),
    )
]
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS.split())} | {
    "one half": r"\frac{1}{2}", "one third": r"\frac{1}{3}", "one fourth": r"\frac{1}{4}", "one quarter": r"\frac{1}{4}"
}  # fmt: skip

_REPEATING = [
    re.compile(pattern)
    for pattern in (
        # 0.\dot{1}42\dot{8}, 0.\overline{3}, 0.(3), 0.333...
        r"(?P<whole>\d*)\.(?P<fixed>\d*)\s*\\dot\s*\{?(?P<block>\d\}?\d*\s*\\dot\s*\{?\d)\}?(?!\d)",
        r"(?P<whole>\d*)\.(?P<fixed>\d*)\s*\\(?:overline|bar|dot)\s*(?:\{\s*(?P<block>\d+)\s*\}|(?P<one>\d))(?!\d)",
        r"(?<![\d.])(?P<whole>\d*)\.(?P<fixed>\d*)\((?P<block>\d+)\)(?=\s*\Z)",
        r"(?<![\d.])(?P<whole>\d*)\.(?P<fixed>\d{0,12}?)"
        r"(?:(?P<one>\d)(?P=one)++|(?P<block>\d{2,12}?)(?P=block)++(?P<part>\d*))\s*(?:\\[lc]?dots\b|\.\.\.|…)",
    )
]
_MIXED_PERCENT = re.compile(
    r"(?<![\d.}])(\d+)\s*\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))(?=\s*\\?%)"
)  # math-verify reads 33\frac{1}{3}\% as 1/3 %
_COMBINING = re.compile(r"(?:\d[\u0304\u0305\u0307])+")

_BASES = {
    word: base
    for base, words in {
        2: "two binary",
        3: "three ternary",
        4: "four",
        5: "five",
        6: "six",
        7: "seven",
        8: "eight octal",
        9: "nine",
        10: "ten decimal",
        11: "eleven",
        12: "twelve",
        16: "sixteen hex hexadecimal",
    }.items()
    for word in words.split()
}
_BASE = r"\{?\s*\(?\s*(?:base[ -]*)?(\d+|[a-z]+)\s*\)?\s*\}?"
_NUMERAL = re.compile(
    r"(?:[A-Za-z]\s*=\s*)?\(?\s*([0-9A-Za-z]+(?:[ ,][0-9A-F]{3,4}(?![0-9A-Za-z]))*)\s*\)?\s*"
    rf"(?:_\s*{_BASE}|[,(]?\s*(?:in\s+)?base[ -]*{_BASE}\)?|[,(]?\s*(?:in\s+)?(binary|octal|hexadecimal|decimal)\)?)?"
)


def rewritten(text: str) -> str:
    """An answer's LaTeX, rewritten into a form that math-verify reads."""
    text = DELIMITER.sub(" ", _NUMBERS.get(plain(text).casefold().replace("-", " "), text))
    text = _COMBINING.sub(lambda found: rf"\overline{{{re.sub(r'[^0-9]', '', found[0])}}}", text)
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻]+", lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[¼-¾⅐-⅞]", _vulgar, text)
    text = " ".join(text.translate(_SYMBOLS).split())
    if _GROUPED.fullmatch(text):  # 10 080, 10’080
        text = re.sub("[ '’]", "", text)
    for pattern in _REPEATING:
        text = pattern.sub(_fraction, text)
    text = _MIXED_PERCENT.sub(_improper, text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip()


def plain(text: str) -> str:
    r"""An answer without \text{} and dollar signs, with runs of white space collapsed."""
    return " ".join(WRAPPED.sub(r"\1", DELIMITER.sub(" ", text)).split())


def ungrouped(text: str) -> str:
    """A number as 12,34,567 or 1.234.567 without separators; any other text as it is."""
    return re.sub("[,.]", "", text) if _INDIAN_OR_DOTTED.fullmatch(text) else text


def numeral(text: str) -> tuple[str, int | None] | None:
    r"""The digits of a numeral, and its base if one is given: 2516_8, 2516_{\text{eight}}, 2516 (base 8), 2516₈.

    Digits are in upper case, without separators and leading zeros. None if the text is no numeral of that base.
    """
    text = re.sub("[₀-₉]+", lambda found: "_" + found[0].translate(_SUBSCRIPTS), text)
    text = re.sub(r"\\[,;:! ]|~|\{,\}|\.\s*\Z|\\left\b|\\right\b", "", plain(text))
    found = _NUMERAL.fullmatch(text.strip())
    if not found:
        return None
    digits = re.sub("[ ,]", "", found[1]).upper().lstrip("0") or "0"
    named = found[2] or found[3] or found[4]
    if named is None:
        return digits, None
    base = int(named) if named.isdecimal() and len(named) < 3 else _BASES.get(named, 0)
    return (digits, base) if 2 <= base <= 36 and all(int(digit, 36) < base for digit in digits) else None


def _vulgar(sign: re.Match[str]) -> str:
    """The LaTeX of a sign such as ½."""
    value = Fraction(unicodedata.numeric(sign[0])).limit_denominator(10)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _improper(mixed: re.Match[str]) -> str:
    """A mixed number as a fraction."""
    whole, above, below = mixed[1], mixed[2] or mixed[4], mixed[3] or mixed[5]
    return rf"\frac{{{int(whole) * int(below) + int(above)}}}{{{below}}}"


def _fraction(decimal: re.Match[str]) -> str:
    """A repeating decimal as a fraction; unchanged if its last digits do not begin the block again."""
    groups = decimal.groupdict(default="")
    block = re.sub(r"\D", "", groups.get("one") or groups["block"])
    if not block.startswith(groups.get("part", "")):
        return decimal[0]
    repeated = Fraction(int(block), 10 ** len(block) - 1)
    value = (int(groups["whole"] + groups["fixed"] or "0") + repeated) / 10 ** len(groups["fixed"])
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
