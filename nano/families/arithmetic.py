"""Arithmetic chains: carry one number through a list of operations."""

from __future__ import annotations

import random

from nano.problem import Habits, Problem, Worked

OPS = ("add", "take away", "double", "halve")
LENGTHS = {0: (1, 1), 1: (2, 3), 2: (4, 4), 3: (5, 6)}


def apply(value: int, op: str, n: int) -> int:
    """The result of one operation, kept within 0..99 (a slip can lead out of it)."""
    result = {"add": value + n, "take away": value - n, "double": value * 2, "halve": value // 2}[op]
    return min(99, max(0, result))


def written(value: int, op: str, n: int) -> str:
    return {"add": f"{value} + {n}", "take away": f"{value} - {n}", "double": f"{value} x 2", "halve": f"{value} / 2"}[
        op
    ]


def make(level: int, start: int, ops: tuple[tuple[str, int], ...]) -> Problem:
    value = start
    for op, n in ops:
        value = apply(value, op, n)
    told = " . ".join(f"{op} it" if op in ("double", "halve") else f"{op} {n}" for op, n in ops)
    query = f"start with {start} . {told} . what number is left ?"
    return Problem("arithmetic", level, (start, ops), query, str(value))


def draw_op(rng: random.Random, value: int) -> tuple[str, int]:
    while True:
        op, n = rng.choice(OPS), rng.randint(1, 9)
        fits = {
            "add": value + n <= 99,
            "take away": value >= n,
            "double": 0 < value <= 49,
            "halve": value % 2 == 0 < value,
        }
        if fits[op]:
            return op, (n if op in ("add", "take away") else 2)


def sample(rng: random.Random, level: int) -> Problem:
    start = value = rng.randint(1, 60)
    ops: list[tuple[str, int]] = []
    for _ in range(rng.randint(*LENGTHS[level])):
        op, n = draw_op(rng, value)
        ops.append((op, n))
        value = apply(value, op, n)
    return make(level, start, tuple(ops))


def derive(problem: Problem, rng: random.Random, habits: Habits) -> Worked:
    value, ops = problem.facts
    thoughts = ["goal : find the number left . plan : one step at a time ."]
    steps = []
    for op, n in ops:
        expression, true = written(value, op, n), apply(value, op, n)
        said = true
        if habits.slips(rng):
            said = min(99, max(0, true + rng.choice((-10, -2, -1, 1, 2, 10))))
        thoughts.append(f"{expression} = {said} .")
        if said != true and habits.catches(rng):
            thoughts.append(f"check {expression} = {true} , wait , not {said} .")
            said = true
        elif habits.careful:
            thoughts.append(f"check {expression} = {said} ok .")
        steps.append(f"{expression} = {said} .")
        value = said
    return Worked(" ".join(thoughts), tuple(steps), str(value))


def perturb(problem: Problem, rng: random.Random) -> Problem:
    """The problem misread in one place: an operation skipped, repeated or changed."""
    start, ops = problem.facts
    changed = list(ops)
    at = rng.randrange(len(changed))
    how = rng.choice(("skip", "repeat", "operand", "operation", "start"))
    if how == "skip" and len(changed) > 1:
        del changed[at]
    elif how == "repeat":
        changed.insert(at, changed[at])
    elif how == "operation":
        op = rng.choice(OPS)
        changed[at] = (op, changed[at][1] if op in ("add", "take away") else 2)
    elif how == "start":
        start = min(99, max(1, start + rng.choice((-10, -1, 1, 10))))
    else:
        changed[at] = ("add" if changed[at][0] in ("double", "halve") else changed[at][0], rng.randint(1, 9))
    return make(problem.level, start, tuple(changed))
