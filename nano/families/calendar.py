"""Calendar walks: go forward and back over the days of the week."""

from __future__ import annotations

import random

from nano.problem import Habits, Problem, Worked, other

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LENGTHS = {0: (1, 1), 1: (2, 3), 2: (4, 4), 3: (5, 6)}


def make(level: int, start: str, moves: tuple[int, ...]) -> Problem:
    day = DAYS[(DAYS.index(start) + sum(moves)) % 7]
    told = " . ".join(f"go {abs(m)} days {'on' if m > 0 else 'back'}" for m in moves)
    return Problem("calendar", level, (start, moves), f"today is {start} . {told} . which day is it ?", day)


def draw_move(rng: random.Random) -> int:
    return rng.choice((-1, 1)) * rng.randint(2, 6)


def sample(rng: random.Random, level: int) -> Problem:
    return make(level, rng.choice(DAYS), tuple(draw_move(rng) for _ in range(rng.randint(*LENGTHS[level]))))


def derive(problem: Problem, rng: random.Random, habits: Habits) -> Worked:
    day, moves = problem.facts
    thoughts = ["goal : find the day . plan : one step at a time ."]
    steps = []
    for move in moves:
        expression = f"{day} {'+' if move > 0 else '-'} {abs(move)}"
        true = said = DAYS[(DAYS.index(day) + move) % 7]
        if habits.slips(rng):
            said = other(rng, DAYS, true)
        thoughts.append(f"{expression} = {said} .")
        if said != true and habits.catches(rng):
            thoughts.append(f"check {expression} = {true} , wait , not {said} .")
            said = true
        elif habits.careful:
            thoughts.append(f"check {expression} = {said} ok .")
        steps.append(f"{expression} = {said} .")
        day = said
    return Worked(" ".join(thoughts), tuple(steps), str(day))


def perturb(problem: Problem, rng: random.Random) -> Problem:
    """The problem misread in one place: a move skipped, repeated, turned round or changed."""
    start, moves = problem.facts
    changed = list(moves)
    at = rng.randrange(len(changed))
    how = rng.choice(("skip", "repeat", "turn", "change", "start"))
    if how == "skip" and len(changed) > 1:
        del changed[at]
    elif how == "repeat":
        changed.insert(at, changed[at])
    elif how == "turn":
        changed[at] = -changed[at]
    elif how == "start":
        start = other(rng, DAYS, str(start))
    else:
        changed[at] = draw_move(rng)
    return make(problem.level, str(start), tuple(changed))
