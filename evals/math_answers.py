r"""Answers to mathematical problems: extracted from a solution and compared with a reference by math-verify.

The answer is the content of the last \boxed{}; `evals.stated_answers` reads prose. Before math-verify compares two
answers, their numerals' bases, their units (`evals.units`) and what it misreads (`evals.notation`) are seen to.
Nothing here limits time or memory, as an answer like 9^{9^{9^9}} needs: model output is graded through
`infra.processes.limited`. math-verify's own time limits use SIGALRM, which only the main thread may set; they are off,
so that any thread can grade. Importing this module loads sympy, which takes half a second, so flows do not import it.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any

from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
from math_verify import LatexExtractionConfig, parse, verify  # type: ignore[import-untyped]

from evals.notation import DELIMITER, WRAPPED, numeral, plain, rewritten, ungrouped
from evals.stated_answers import stated
from evals.units import bare_letter, known, split

LONGEST = 1_000
"""Maximum length of an answer, in characters; the longest reference answer of MATH500 has 53."""

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_SPACING = re.compile(r"\\(?:q?quad\b|[,;:! ()\[\]])|[\s$~]")
_JOINED = re.compile(r"(?:[A-Za-z]{0,20}?(?:[,;]|,?(?:and|or))(?:[A-Za-z](?:_\{?\w\}?)?=)?)?")
_ANSWER = re.compile(r"\banswer|^\s*####\s", re.IGNORECASE | re.MULTILINE)
_STATED = re.compile(r"final answer is:?\s*(?=[$*\d+-]|\\[(\[])", re.IGNORECASE)
_COMMAND = re.compile(r"\\(?:begin|end|operatorname|text\w*|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"(?!(?:and|or)\b)[A-Za-z]{2,}")
_VERBAL = re.compile(r"(?!.*[+*/^_=<>\\])(?!.*-(?![^\W\d_]{2})).*\b(?:[A-Za-z]{2}|[^\W\d_\u0370-\u03ff]{2})", re.DOTALL)
_CASED = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{1,2}(?![A-Za-z])")
_NAME = re.compile(r"\A\s*[A-Za-z]\s*=")
_RATIO = re.compile(r"(\d+)\s*:\s*(?:([0-5]\d)(?:\s*[ap]\.?m\.?)?|(\d+))", re.IGNORECASE)  # 2:05 and 3:4
_OPTION = re.compile(r"(?<![^\s,;])\(([a-z])\)(?!\s*[-+*/^=(])", re.IGNORECASE)
_CHOICE = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?\(?([a-z])\)?\.?", re.IGNORECASE)
_ARTICLE = re.compile(r"\A(?:an?|the) (?=[a-z]{3,}(?: [a-z]+)*\Z)")
_LABELLED = re.compile(r"([a-z])[).:]", re.IGNORECASE)
_LABEL = re.compile(
    r"\s*(?:\\(?:text\w*|mathrm|mathbf|mbox|emph)\s*\{\s*)?\(?[A-Z]\)[.:]?\s*\}?(?:\\[ ,;:]|~|\s|\\q?quad)*(?=\S)"
)
# math-verify would drop the t of 5t, and any text after a number, as a unit: `evals.units` knows better.
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
)

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that its time limits are off


def grade(solution: str | None, reference: str) -> tuple[str | None, bool]:
    """The answer that a solution gives (None if it gives none), and whether it equals the reference answer."""
    prediction = extract(solution)
    return prediction, prediction is not None and equivalent(prediction, reference)


def extract(solution: str | None) -> str | None:
    r"""The answer that a solution gives: LaTeX or plain text of at most `LONGEST` characters; None if it gives none.

    It is the content of the last closed, non-empty \boxed{}, or of the last several boxes with only "and", "or", a
    comma or nothing between them. If a solution has no box, or states "final answer is" and a number or formula after
    its last box, `stated` reads the prose. A text that is only a formula or a word is itself the answer.
    """
    text = solution or ""
    answer, end = _boxed(text)
    if answer is not None:
        answer = (stated(text[end:], final=True) if _STATED.search(text, end) else None) or answer
    elif len(rest := text.strip()) <= LONGEST and "\\boxed" not in rest and not _is_prose(rest):
        answer = re.sub(r"\A[A-Za-z]{2,}:\s+", "", rest)
    else:
        answer = stated(text)
    return answer if answer and len(answer) <= LONGEST else None


def equivalent(prediction: str, reference: str) -> bool:
    """Whether an answer equals the reference answer; if either has boxes, their content is compared.

    Also serves as a verifiable reward for queries with a reference. False if either is empty or longer than `LONGEST`.
    """
    prediction, reference = ((_boxed(text)[0] or text).rstrip("\\ ") for text in (prediction, reference))
    if not prediction.strip() or not reference.strip() or max(len(prediction), len(reference)) > LONGEST:
        return False
    if _bare(prediction) == _bare(reference):
        return True
    given, sought = (plain(text).rstrip(". ") for text in (prediction, reference))
    if max(len(text.strip("$. ")) for text in (prediction, reference)) > 1:  # (C) is an option, C may be a variable
        given, sought = given.casefold(), sought.casefold()
    option = _CHOICE.fullmatch(sought)
    if option and (options := _OPTION.findall(given)):
        return set(options) == {option[1]}
    choice = _CHOICE.fullmatch(given) or _LABELLED.match(given)
    if option and choice and choice[1] == option[1]:
        return True
    based = numeral(reference), numeral(prediction)
    if any(each and each[1] for each in based):
        return _same_numeral(*based)
    if not option and (label := _LABEL.match(prediction)):  # (C) 12, where the reference is 12
        opened = label[0].count("{") > label[0].count("}")
        unlabelled = prediction[label.end() :].removesuffix("}" if opened else "")
        if _bare(unlabelled) == _bare(reference) or _same_quantity(unlabelled, reference):
            return True
    return _same_quantity(prediction, reference)


def _bare(text: str) -> str:
    """An answer without a full stop and separators of thousands; words in lower case, without an article."""
    text = ungrouped(plain(text).rstrip(". "))
    return _ARTICLE.sub("", text.casefold()) if _VERBAL.match(text) else text


def _same_numeral(reference: tuple[str, int | None] | None, prediction: tuple[str, int | None] | None) -> bool:
    """Whether two numerals have the same digits, and the same base if both name one: the query may name it too."""
    if reference is None or prediction is None:
        return False
    bases = {base for _, base in (reference, prediction) if base}
    return reference[0] == prediction[0] and len(bases) == 1


def _same_quantity(prediction: str, reference: str) -> bool:
    """Whether two values are equal, and so are their units, unless one of the two is left out or unknown."""
    (value, unit), (gold, gold_unit) = (split(DELIMITER.sub(" ", text)) for text in (prediction, reference))
    if unit and not gold_unit:
        gold, gold_unit = bare_letter(gold)
    elif gold_unit and not unit:
        value, unit = bare_letter(value)
    size, gold_size = (known(each) if each else None for each in (unit, gold_unit))
    if size and gold_size and size.dimension != gold_size.dimension:
        return False
    if size and gold_size:
        value = _times(size.size / gold_size.size, value)
    if _same_value(value, gold):
        return True
    if size and not gold_unit and not size.dimension:  # 3 million, where the reference is 3,000,000
        return _same_value(_times(size.size, value), gold)
    if gold_size and not unit and not gold_size.dimension:
        return _same_value(value, _times(gold_size.size, gold))
    (bare, letter), (bare_gold, gold_letter) = bare_letter(value), bare_letter(gold)
    return (
        bool(letter) != bool(gold_letter)
        and not re.search("[A-Za-z]", bare + bare_gold)
        and _same_value(bare, bare_gold)
    )


def _times(factor: Fraction, value: str) -> str:
    return value if factor == 1 else rf"\frac{{{factor.numerator}}}{{{factor.denominator}}} \cdot ({value})"


def _same_value(prediction: str, reference: str) -> bool:
    one, other = (_RATIO.fullmatch(plain(text)) for text in (prediction, reference))
    if one and other and (one[2] or other[2]):  # times of day, which math-verify would divide
        return [int(one[1]), int(one[2] or one[3])] == [int(other[1]), int(other[2] or other[3])]
    # math-verify takes x and X for the same variable
    ours, theirs = (set("".join(_CASED.findall(_NAME.sub("", text)))) for text in (prediction, reference))
    if (ours ^ theirs) & {letter.swapcase() for letter in ours | theirs}:
        return False
    return bool(
        verify(
            _parsed(rewritten(reference)),
            _parsed(rewritten(prediction)),
            allow_set_relation_comp=True,
            timeout_seconds=None,
        )
    )


def _boxed(text: str) -> tuple[str | None, int]:
    """The content of the last boxes, and where the last one ends (0 if there is none). Linear in the length."""
    opened: list[tuple[int, int]] = []  # of each open group: its start, or -1 if it is no box, and its content's start
    boxes: list[tuple[int, int, int]] = []
    for brace in _BRACES.finditer(text):
        found = brace.group()
        if found == "}":
            if opened and (group := opened.pop())[0] >= 0:
                boxes.append((*group, brace.start()))
        elif found[-1] == "{" and found != "\\{":
            opened.append((brace.start() if found[0] == "\\" else -1, brace.end()))
    answers: list[str] = []
    last = first = 0
    for start, inner, end in reversed(boxes):
        content = text[inner : min(end, inner + LONGEST + 1)].strip()
        if answers and not (
            end < first
            and first - end < 100
            and _JOINED.fullmatch(_SPACING.sub("", WRAPPED.sub(r"\1", text[end + 1 : first])))
        ):
            break
        if content:
            last, first = last or end + 1, start
            answers.append(content)
    return (",".join(dict.fromkeys(reversed(answers))) if answers else None), last


def _is_prose(text: str) -> bool:
    """Whether a text is prose: it has the word "answer" or GSM8K's "####", two words, or one word beside a formula in
    delimiters."""
    if _ANSWER.search(text):
        return True
    words = _WORD.findall(_COMMAND.sub(" ", text))
    return len(words) > (0 if DELIMITER.search(text) else 1)


def _parsed(latex: str) -> list[Any]:
    """An answer as parsed by math-verify: an expression if possible, and the normalised text."""
    boxed = LatexExtractionConfig(boxed_match_priority=0, normalization_config=_NORMALIZATION)
    found: list[Any] = parse(f"\\boxed{{{latex}}}", [boxed], parsing_timeout=None)
    return found
