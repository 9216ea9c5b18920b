r"""Answers to mathematical problems: extracted from a solution and compared with a reference by math-verify.

The answer is the content of the last \boxed{}. Nothing here limits time or memory, as an answer like 9^{9^{9^9}} needs:
model output is graded through `infra.processes.limited`. math-verify's own time limits use SIGALRM, which only the main
thread may set; they are off, so that any thread can grade. Importing this module loads sympy, which takes half a
second, so flows do not import it.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify  # type: ignore[import-untyped]
from math_verify.grader import get_pct_val  # type: ignore[import-untyped]

LONGEST = 1_000
"""Maximum length of an answer, in characters; the longest reference answer of MATH500 has 53."""
_TAIL = 2_000  # characters at the end of a solution without a box that are searched for its answer

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_SPACING = re.compile(r"\\(?:q?quad\b|[,;:! ()\[\]])|[\s$~]")
_JOINED = re.compile(r"(?:[A-Za-z]{0,20}?(?:[,;]|,?(?:and|or))(?:[A-Za-z](?:_\{?\w\}?)?=)?)?")
_ANSWER = re.compile(r"\banswer", re.IGNORECASE)
_ANSWER_IS = re.compile(r"\banswer\s*(?:is\b|:)[\s:]*([^\s:.][^\n]{0,40}?)\.?[^\S\n]*$", re.IGNORECASE | re.MULTILINE)
# Bold type, and a plus sign before a number; math-verify reads neither.
_MARKS = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])|(?<=\s)\+(?=\d)")
_STATED = re.compile(r"final answer is:?\s*(?=[$*\d+-]|\\[(\[])", re.IGNORECASE)
_DELIMITER = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
_COMMAND = re.compile(r"\\(?:begin|end|operatorname|text\w*|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"(?!(?:and|or)\b)[A-Za-z]{2,}")
_WRAPPED = re.compile(r"\\(?:text\w*|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_OPTION = re.compile(r"\(([A-Z])\)")
_GROUPED = re.compile(r"\s*[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?\s*")
_VARIABLE = re.compile(r"(?:(?<=[\d}])|(?<=[A-Za-z}]\s))[A-Za-z]$")
_ORDINAL = r"(?:st|nd|rd|th)"

_SYMBOLS = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {  # full-width ASCII
    ord(symbol): latex
    for symbol, latex in {
        **dict.fromkeys("−–", "-"),
        **dict.fromkeys("·⋅", r"\cdot "),
        **dict.fromkeys("\u00a0\u2009\u202f", "~"),
        **dict(zip("²³°", ("^2", "^3", r"^\circ "), strict=True)),
        **dict(zip("×÷π∞", (r"\times ", r"\div ", r"\pi ", r"\infty "), strict=True)),
        **dict(zip("≤≥≠", (r"\le ", r"\ge ", r"\ne "), strict=True)),
        **dict(zip("∪∩∈∅", (r"\cup ", r"\cap ", r"\in ", r"\emptyset "), strict=True)),
    }.items()
}
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)%", r"\\%"),
        (r"[£€¥]|(?<=\d)\s*dollars?\b", ""),
        (r"\\\\\[[^\]]*\]", r"\\\\"),  # a matrix's \\[2pt]
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(\w+)", r"\\sqrt{\1}"),
        (r"\\varnothing\b", r"\\emptyset "),
        (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
        (r"\\(?:mathrm|text)\s*\{\s*([ie])\s*\}", r"\1"),  # math-verify would drop the i of 5\text{i} as a unit
        (r"(?<=\d)(?:\\[,;:! ]|~)\s*(?=\d{3}(?!\d))", ""),  # 10\,080
        (r"(?<![\d./])(\d+) (\d+)\s*/\s*(\d+)(?![\d./])", r"\1\\frac{\2}{\3}"),  # 2 1/3
        (rf"(?<=\d)\s*\^?\s*(\{{)?\s*\\(?:text|mathrm)\s*\{{\s*{_ORDINAL}\s*\}}(?(1)\s*\}})", " "),  # 12^{\mathrm{th}}
        (rf"(?<=\d)(?:\s*\^\s*\{{\s*{_ORDINAL}\s*\}}|{_ORDINAL}\b)", " "),  # 12^{th}, 12th
        (r"(?:(?<!\\right)\.|[,;:]|\\[\\ ]|\s)+$", ""),
    )
]

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that its time limits are off


def grade(solution: str | None, reference: str) -> tuple[str | None, bool]:
    """The answer that a solution gives (None if it gives none), and whether it equals the reference answer."""
    prediction = extract(solution)
    return prediction, prediction is not None and equivalent(prediction, reference)


def extract(solution: str | None) -> str | None:
    r"""The answer that a solution gives: LaTeX or plain text of at most `LONGEST` characters; None if it gives none.

    It is the content of the last closed, non-empty \boxed{}, or of the last several boxes with only "and", "or", a
    comma or nothing between them. If a solution has no box, or states "final answer is" and a number or formula after
    its last box, math-verify searches for the answer: after "answer", or else the last formula or number. math-verify
    reads no words, so a few words after "answer is" are read here. A text that is only a formula or a word is itself
    the answer.
    """
    text = solution or ""
    answer, end = _boxed(text)
    if answer is not None and not _STATED.search(text, end):
        return answer if len(answer) <= LONGEST else None
    rest = text[end:].strip()
    if len(rest) <= LONGEST and "\\boxed" not in rest and not _is_prose(rest):
        return rest or None
    return _found(rest[-_TAIL:]) or answer


def equivalent(prediction: str, reference: str) -> bool:
    """Whether an answer equals the reference answer; if either has boxes, their content is compared.

    Also serves as a verifiable reward for queries with a reference. False if either is empty or longer than `LONGEST`.
    """
    prediction, reference = (_boxed(text)[0] or text for text in (prediction, reference))
    if not prediction.strip() or not reference.strip() or max(len(prediction), len(reference)) > LONGEST:
        return False
    plain, sought = _plain(prediction), _plain(reference)
    if plain.casefold() == sought.casefold():
        return True
    if option := _OPTION.fullmatch(sought):
        if options := _OPTION.findall(plain):
            return set(options) == {option[1]}
        if re.match(rf"{option[1]}(?:[).:]|$)", plain):
            return True
    gold, given = _rewritten(reference), _rewritten(prediction)
    if _VARIABLE.search(gold):  # math-verify would drop the t of 5t as a unit
        gold, given = _VARIABLE.sub(r"{\g<0>}", gold), _VARIABLE.sub(r"{\g<0>}", given)
    return bool(verify(_parsed(gold), _parsed(given), allow_set_relation_comp=True, timeout_seconds=None))


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
            and _JOINED.fullmatch(_SPACING.sub("", _WRAPPED.sub(r"\1", text[end + 1 : first])))
        ):
            break
        if content:
            last, first = last or end + 1, start
            answers.append(content)
    return (",".join(dict.fromkeys(reversed(answers))) if answers else None), last


def _is_prose(text: str) -> bool:
    """Whether a text is prose: it has the word "answer", two words, or one word beside a formula in delimiters."""
    if _ANSWER.search(text):
        return True
    words = _WORD.findall(_COMMAND.sub(" ", text))
    return len(words) > (0 if _DELIMITER.search(text) else 1)


def _found(text: str) -> str | None:
    """The answer that math-verify finds in prose, or else the few words after "answer is"."""
    text = _MARKS.sub("", text)
    found = parse(text, parsing_timeout=None)
    if not found:
        stated = _ANSWER_IS.findall(text)
        return stated[-1].strip() if stated else None
    answer = next((each.strip() for each in found if isinstance(each, str)), "")
    percent = get_pct_val(found[0])  # for "23 percent", the answer's text has only the 23
    return (answer if percent is None or "%" in answer else f"{answer}\\%") or None


def _plain(text: str) -> str:
    r"""An answer without \text{} and dollar signs, with runs of white space collapsed."""
    return " ".join(_WRAPPED.sub(r"\1", _DELIMITER.sub(" ", text)).split())


def _rewritten(text: str) -> str:
    """An answer's LaTeX, rewritten into a form that math-verify reads."""
    text = " ".join(_DELIMITER.sub(" ", text).translate(_SYMBOLS).split())
    if _GROUPED.fullmatch(text):  # 10 080
        text = text.replace(" ", "")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip()


def _parsed(latex: str) -> list[Any]:
    """An answer as parsed by math-verify: an expression if possible, and the normalised text."""
    boxed = LatexExtractionConfig(boxed_match_priority=0)
    found: list[Any] = parse(f"\\boxed{{{latex}}}", [boxed], parsing_timeout=None)
    return found
