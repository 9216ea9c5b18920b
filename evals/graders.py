"""The graders of the verifiable benchmarks with one signature, so that a grading process can call them by name.

Each takes a solution (None if the response has none) and the problem's reference. It returns JSON values: the answer
that was read, whether it is correct, and for an answer of several parts their number and how many are correct.
"""

from __future__ import annotations

from typing import TypedDict

from evals import everyday as everyday_grader
from evals import math500 as math500_grader
from evals import math_level5 as math_level5_grader
from evals import short_answer as short_answer_grader
from evals import zebralogic as zebralogic_grader


class Grade(TypedDict):
    """How one solution was graded."""

    prediction: str | None
    correct: bool
    parts: int | None
    correct_parts: int | None


def short_answer(solution: str | None, reference: str) -> Grade:
    prediction = short_answer_grader.extract(solution, reference)
    return _whole(prediction, short_answer_grader.is_correct(prediction, reference))


def everyday(solution: str | None, reference: str) -> Grade:
    prediction = everyday_grader.extract(solution, reference)
    return _whole(prediction, everyday_grader.is_correct(prediction, reference))


def math500(solution: str | None, reference: str) -> Grade:
    return _whole(*math500_grader.grade(solution, reference))


def math_level5(solution: str | None, reference: str) -> Grade:
    return _whole(*math_level5_grader.grade(solution, reference))


def zebralogic(solution: str | None, reference: str) -> Grade:
    found = zebralogic_grader.grade(solution, reference)
    return {
        "prediction": found.prediction,
        "correct": found.solved,
        "parts": found.total_cells,
        "correct_parts": found.correct_cells,
    }


def _whole(prediction: str | None, correct: bool) -> Grade:
    return {"prediction": prediction, "correct": correct, "parts": None, "correct_parts": None}
