"""MATH500: 500 problems of the MATH test set, as openai/prm800k chose them (MIT); graded by `evals.math_answers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.problem import Problem

INSTRUCTION = r"Reason step by step, and put your final answer in \boxed{}."


def read(record: Mapping[str, Any], row: int) -> Problem:
    """A problem in the authors' layout: problem, solution, answer, subject, level, unique_id.

    Raises:
        ValueError: a field that is needed (all but solution and level) is no text or empty; row and field are named.
    """
    for field in ("unique_id", "problem", "answer", "subject"):
        value = record.get(field)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"row {row}, field {field}: expected a text, found {value!r:.80}")
    return Problem(
        problem_id=record["unique_id"],
        query=f"{record['problem']}\n\n{INSTRUCTION}",
        reference=record["answer"],
        category=record["subject"],
    )


def grade(solution: str | None, reference: str) -> tuple[str | None, bool]:
    """The answer that a solution gives, None where it gives none, and whether it is the reference answer."""
    from evals.math_answers import grade as graded  # with sympy, which those who only read need not load

    return graded(solution, reference)
