"""MATH level 5: 721 problems with numeric answers, graded as leniently as in ZeroEval's published math-l5 results.

Source of the rules: WildEval/ZeroEval (Apache-2.0), src/evaluation/math_eval.py and eval_utils.py, and its published
score board, whose figures the tests reproduce. Only the first number of an answer counts: "-221_3" is -221, "5 or 7"
is 5. Two things differ: where that program would stop with an error (JSON nested too deep, a number of 5,000 digits),
grading continues here; and it evaluates an answer with a "/" by Python's `eval`, here only arithmetic is evaluated. The
prompt is in our own words.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from evals.problem import Problem

INSTRUCTION = """Reason first, then answer. Write both as one JSON object of this form, the answer a number:

```json
{
    "reasoning": "your reasoning",
    "answer": "42"
}
```"""

_BRACES = re.compile(r"[{}]")
_QUOTED = re.compile(r'"answer"\s*:\s*"([^"]*)"')
_UNQUOTED = re.compile(r'"answer"\s*:\s*([^,\s]*)')
_BARE = re.compile(r"answer\s*:\s*([^,\s]*)")
_BOXED = re.compile(r"\\boxed\{(\w+)\}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_ARITHMETIC = re.compile(r"[0-9eE_.+\-*/% ()]{1,200}")
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def read(record: Mapping[str, Any], row: int) -> Problem:
    """Read a problem in ZeroEval's layout: id, problem, answer.

    Raises:
        ValueError: a field is missing or malformed; the message names row and field.
    """
    problem_id, problem, answer = record.get("id"), record.get("problem"), record.get("answer")
    if isinstance(problem_id, bool) or not isinstance(problem_id, int | str) or not str(problem_id).strip():
        raise ValueError(f"row {row}, field id: expected an integer or a non-empty string, found {problem_id!r:.80}")
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"row {row}, field problem: expected a non-empty string, found {problem!r:.80}")
    if not isinstance(answer, str) or _number(answer) is None:
        raise ValueError(f"row {row}, field answer: expected a string that contains a number, found {answer!r:.80}")
    return Problem(problem_id=str(problem_id), query=f"{problem}\n\n{INSTRUCTION}", reference=answer)


def grade(solution: str | None, reference: str, *, boxed: bool = True) -> tuple[str | None, bool]:
    """The answer that a solution gives (None if it gives none), and whether its first number is the reference's.

    `boxed`: whether an answer in a box counts if there is no other. ZeroEval reads boxes of some models only:
    `reads_boxes` reproduces its figures.
    """
    prediction = extract(solution, boxed=boxed)
    number = None if prediction is None else _number(prediction)
    return prediction, number is not None and number == _number(reference.replace("#", ""))


def reads_boxes(model: str, solution: str) -> bool:
    """Whether ZeroEval reads a box in this model's solution: a Llama-3.1 that writes one in its last 30 characters."""
    return "Llama-3.1" in model and "boxed" in solution[-30:]


def extract(solution: str | None, *, boxed: bool = True) -> str | None:
    """The `answer` in the first JSON object, or else the text after "answer", found as in ZeroEval and not stripped."""
    text = solution or ""
    if (answer := _json_answer(text)) is not None:
        return answer
    for pattern in (_QUOTED, _UNQUOTED, _BARE, *([_BOXED] if boxed else [])):
        if found := pattern.search(text):
            return found[1]
    return None


def _json_answer(text: str) -> str | None:
    """The `answer` in the first pair of braces; None if they hold no JSON object, or one without an answer."""
    depth = start = 0
    for brace in _BRACES.finditer(text):
        if brace.group() == "{":
            start = start if depth else brace.start()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                try:
                    return str(json.loads(text[start : brace.end()].replace("\n", ""))["answer"])
                except (ValueError, KeyError, RecursionError):
                    return None
    return None


def _number(answer: str) -> float | None:
    """The first number in an answer, after "$" and "," are removed and arithmetic with a "/" is evaluated."""
    text = answer.replace("$", "").strip().replace(",", "")
    if "/" in text and (value := _arithmetic(text)) is not None:
        text = str(value)
    found = _NUMBER.search(text)
    return float(found.group()) if found else None


def _arithmetic(text: str) -> float | None:
    """The value of an arithmetic expression; None for any other text. Uses floats only, as integers could get huge."""
    if not _ARITHMETIC.fullmatch(text):
        return None
    try:
        return float(_value(ast.parse(text.strip(), mode="eval").body))
    except (SyntaxError, ArithmeticError, TypeError, ValueError, KeyError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    """Evaluate an expression. Raises `TypeError` if a node is no arithmetic, `KeyError` for an unknown operator."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left), _value(right))
    raise TypeError(f"{type(node).__name__} is no arithmetic")
