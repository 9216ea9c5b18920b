r"""Numbers and formulas amid words: "So x = 5 or x = -2.", "The vertex is at (-1, 6), as $y(-1) = 6$ shows."

A formula in LaTeX becomes one character of private use, so that a text can be read word by word; a run is a number, a
formula or a list of them, with its unit. Texts are short (`evals.stated_answers`), so time may be quadratic in them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evals.units import known

CUT = "␃"
"""Stands for a box that is never closed, in a text with hidden formulas."""
_FIRST, _LAST = 0xE000, 0xF8FF  # characters of private use, each of which stands for a formula
FORMULA = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
"""A hidden formula."""

_NOISE = re.compile(
    r"<\|(?:im_start|im_end|eot_id|endoftext|end_of_text|start_header_id)\|>.*"  # what follows a turn
    r"|<\|\w{1,40}\|>|```.*?(?:```|\Z)|\\(?:boxed|fbox)\s*\{\s*\}|\*\*|__|</answer>|^\s*#{1,6}(?= *[A-Za-z])",
    re.DOTALL | re.MULTILINE,
)
_OPENED = re.compile(r"\\(?:boxed|fbox)\b.*", re.DOTALL)
_LATEX = re.compile(
    r"(?<!\\)\$\$(?P<a>.+?)(?<!\\)\$\$|\\\[(?P<b>.+?)\\\]|(?<!\\)\$(?P<c>(?:[^$\n\\]|\\.)*)(?=\$)|\\\((?P<d>.+?)\\\)"
    r"|(?P<e>\\begin\{(\w+\*?)\}.+?\\end\{\6\})|(?P<f>-?\\[dtc]?frac\s*\{[^{}]*\}\s*\{[^{}]*\})",
    re.DOTALL,
)
_COMMAND = re.compile(r"\\(?:begin|end|operatorname|text\w*|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORDS = re.compile(r"\b(?:[a-z]{4,}|the|is|of|has|so|we|for|to|by|in|it)\b", re.IGNORECASE)

_NAMES = frozenset(
    ("pi", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "inf", "infinity", "mod", "cdot")
)
_JOINING = frozenset(("and", "or", "&", ",", ";", "or,", "and,"))
_LETTERS = re.compile(r"[A-Za-z]+")
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)")
_OPERATOR = re.compile(r"[=+*/^<>≤≥≠±×÷·−-]+")
_OPERAND = re.compile(r"[-−+(\[{]*(?:\w|\W*\d.*|[\ue000-\uf8ff].*)[)\]}]*|.*[\d\ue000-\uf8ff)]")
_VARIABLE = re.compile(r"[(\[{]*[-−+]?[A-Za-zπ∞][)\]},]*")
_EXPRESSION = re.compile(r"(?=.*[=+*/^<>≤≥√π])[\w=+*/^<>≤≥√π().,\[\]{}−-]+")
_NEXT = re.compile(r"\d{3}(?:[.,]\d+)?[.,;:!?]*|\d+/\d+[.,;:!?]*")  # of 10 080, of 2 1/2
_DERIVED = re.compile(r"\A.*(?:,|\band)\s+(?=[A-Za-z]\s*[+*/-]\s*[A-Za-z][^=]*=[^=]*\Z)")  # m = 2, n = 3, and m + n = 5
_STOPS = re.compile(r"[.!?:;,]+\Z")
_BASE = re.compile(r"\(?(?:in )?(base[ -]\w+|binary|octal|hexadecimal)\b", re.IGNORECASE)
_PERCENT = re.compile(r"(?:%|\\%|percent|pct|percentage)[.,;:!?]*", re.IGNORECASE)


def hidden(text: str) -> tuple[str, list[str]]:
    """A text in which one character stands for each formula, without code and bold type, and the formulas.

    What a box that is never closed holds is left out: `CUT` stands for it.
    """
    text = _OPENED.sub(CUT, _NOISE.sub(" ", FORMULA.sub("", text).replace(CUT, "").replace("’", "'")))
    text = re.sub(r"(?<=\d)\.\.\.", "…", text)
    formulas: list[str] = []
    parts: list[str] = []
    place = 0
    while found := _LATEX.search(text, place):
        kind = next(name for name in "abcdef" if found[name] is not None)
        parts.append(text[place : found.start()])
        if kind == "c" and not _is_formula(found[kind]):
            parts.append("$")  # of a price, or left over
            place = found.start() + 1
            continue
        formulas.append(found[kind].strip())
        parts.append((" " if kind in "ab" else "") + chr(_FIRST + len(formulas) - 1))
        place = found.end() + (kind == "c")
    text = re.sub(r"(?<!\\)\$", r"\\$", "".join([*parts, text[place:]]))
    return re.sub(r"\s*\n\s*(?=[\ue000-\uf8ff])", " ", text), formulas


def shown(text: str, formulas: Sequence[str]) -> str:
    """A text with its formulas again."""
    text = FORMULA.sub(lambda found: f" {formulas[ord(found[0]) - _FIRST]} ", text)
    return " ".join(text.split()).strip(" .,;:")


def run(tokens: Sequence[str], *, start: bool = False) -> str | None:
    """The first run of numbers and formulas among words, with its unit or base; None if there is none.

    `start`: only if it begins with the first word.
    """
    first, end = bounds(tokens)
    if first == end or (start and first):
        return None
    found = " ".join(tokens[first:end])
    closed = _balanced(_STOPS.sub("", found))
    unit = _unit(tokens[end : end + 4]) if closed == found else ""
    return _DERIVED.sub("", re.sub(r"\A\+(?=\d)", "", closed)) + unit


def bounds(tokens: Sequence[str]) -> tuple[int, int]:
    """The first run's first word and the one after its last; equal if there is none."""
    first = next((place for place in range(len(tokens)) if is_math(tokens, place)), len(tokens))
    end, depth = first, 0
    while end < len(tokens):
        token = tokens[end]
        if token.lower() in _JOINING:
            if end == first or end + 1 == len(tokens) or not is_math(tokens, end + 1):
                break
        elif not is_math(tokens, end) or (end > first and not depth and not _goes_on(tokens[end - 1], token)):
            break
        depth += sum(map(token.count, "([{")) - sum(map(token.count, ")]}"))
        end += 1
        if not depth and token[-1] in ".!?:":
            break
    return first, end


def is_math(tokens: Sequence[str], place: int) -> bool:
    """Whether a word is a number or a formula, an operator beside one, or a variable beside an operator."""
    token = tokens[place].strip(".,;:!?\"'")
    words = [word for word in _LETTERS.findall(token) if len(word) > 1 and word.lower() not in _NAMES]
    if words and not (token[0].isdigit() and known(" ".join(words))) and not _ORDINAL.fullmatch(token):
        return False
    if FORMULA.search(token) or any(character.isdigit() for character in token):
        return True
    beside = [tokens[other].strip(".,;:!?") for other in (place - 1, place + 1) if 0 <= other < len(tokens)]
    if _OPERATOR.fullmatch(token):
        return any(_OPERAND.fullmatch(other) for other in beside)
    if _VARIABLE.fullmatch(token):
        if tokens[place][0] in "([{":  # (a, b) or (a + b)
            operator = place + 1 < len(tokens) and _OPERATOR.fullmatch(tokens[place + 1])
            return bool(operator) or (tokens[place][-1] in ",)]}" and len(token) > 2)
        in_pair = place > 0 and tokens[place - 1][0] in "([{" and tokens[place - 1][-1] == ","
        return in_pair or any(_OPERATOR.search(other[:1] + other[-1:]) for other in beside)
    return bool(_EXPRESSION.fullmatch(token))


def _is_formula(content: str) -> bool:
    """Whether what is between two dollar signs is a formula: no prose, and no price before another one."""
    if not content.strip() or content[0].isspace() != content[-1].isspace():
        return False
    return len(content.split()) < 2 or not _WORDS.search(_COMMAND.sub(" ", content))


def _goes_on(before: str, token: str) -> bool:
    """Whether a word continues a run: after a comma, a connective or an operator, or as a part of a number."""
    if before.lower() in _JOINING or before[-1] in ",;" or _OPERATOR.match(before[-1]) or _OPERATOR.match(token):
        return True
    return bool(_NEXT.fullmatch(token))


def _balanced(text: str) -> str:
    """A text without closing brackets at its end that nothing opens. [2, 5) has none: intervals mix brackets."""
    while text and text[-1] in ")]}":
        opening, closing = ("{", "}") if text[-1] == "}" else ("([", ")]")
        if sum(map(text.count, closing)) <= sum(map(text.count, opening)):
            break
        text = _STOPS.sub("", text[:-1])
    return text


def _unit(tokens: Sequence[str]) -> str:
    """The percent sign, base or known unit that follows a number."""
    if base := _BASE.match(" ".join(tokens)):
        return f" {base[1]}"
    if tokens and _PERCENT.fullmatch(tokens[0]):
        return r"\%"
    for count in range(len(tokens) if tokens and tokens[0] != "in" else 0, 0, -1):
        unit = re.sub(r"[.,;:!?)]+\Z", "", " ".join(tokens[:count]))
        if all(len(word) > 1 or word in "mgsLlh" for word in unit.split()) and known(unit):
            return rf"\text{{ {unit}}}"
    return ""
