"""MATH500: the 500 problems of the MATH test set chosen by openai/prm800k (MIT); graded by `evals.math_answers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.problem import Problem

INSTRUCTION = r"Reason step by step, and put your final answer in \boxed{}."


def read(record: Mapping[str, Any], row: int) -> Problem:
    """Read a problem in the authors' layout: problem, solution, answer, subject, level, unique_id.

    Raises:
        ValueError: a required field (all but solution and level) is no string or is blank; row and field are named.
    """
    for field in ("unique_id", "problem", "answer", "subject"):
        value = record.get(field)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"row {row}, field {field}: expected a non-empty string, found {value!r:.80}")
    return Problem(
        problem_id=record["unique_id"],
        query=f"{record['problem']}\n\n{INSTRUCTION}",
        reference=record["answer"],
        category=record["subject"],
    )


def grade(solution: str | None, reference: str) -> tuple[str | None, bool]:
    """The answer that a solution gives (None if it gives none), and whether it equals the reference answer."""
    from evals.math_answers import grade as graded  # imports sympy, which is not needed to read problems

    return graded(solution, reference)
