"""Pair search: which two numbers of a list add up to the target?"""

from __future__ import annotations

import random
from itertools import combinations

from nano.problem import Habits, Problem, Worked

SIZES = {0: (3, 3), 1: (4, 4), 2: (5, 5), 3: (6, 6)}
LARGEST = 15


def solutions(numbers: tuple[int, ...], target: int) -> list[tuple[int, int]]:
    return [(a, b) for a, b in combinations(numbers, 2) if a + b == target]


def named(a: int, b: int) -> str:
    """The name of a pair: the smaller number first, whichever was found first."""
    return f"{min(a, b)} and {max(a, b)}"


def make(level: int, numbers: tuple[int, ...], target: int) -> Problem:
    pairs = solutions(numbers, target)
    answer = named(*pairs[0]) if pairs else "none"
    query = f"which two of {' , '.join(map(str, numbers))} add up to {target} ?"
    return Problem("pair_sum", level, (numbers, target), query, answer)


def sample(rng: random.Random, level: int) -> Problem:
    while True:
        numbers = tuple(rng.sample(range(1, LARGEST + 1), rng.randint(*SIZES[level])))
        a, b = rng.sample(numbers, 2)
        if len(solutions(numbers, a + b)) == 1:
            return make(level, numbers, a + b)


def derive(problem: Problem, rng: random.Random, habits: Habits) -> Worked:
    numbers, target = problem.facts
    thoughts = [f"goal : two that add up to {target} . plan : try each in turn ."]
    for sweep, calm in enumerate((1.0, 0.3) if habits.careful else (1.0,)):
        for a in numbers:
            true = stated = target - a
            if true in numbers and habits.slips(rng, 2.5 * calm):
                stated = max(0, true + rng.choice((-3, -2, -1, 1, 2, 3)))
            elif true > 0 and habits.slips(rng, 0.4 * calm):
                stated = min((n for n in numbers if n != a), key=lambda n: abs(n - true))
            if true < 0:
                thoughts.append(f"try {a} : too big , no .")
                continue
            if stated == a or stated not in numbers:
                thoughts.append(f"try {a} : {target} - {a} = {stated} , no .")
                continue
            thoughts.append(f"try {a} : {target} - {a} = {stated} , yes .")
            if a + stated != target and habits.catches(rng):
                thoughts.append(f"check {a} + {stated} = {a + stated} , wait , not {target} .")
                continue
            if habits.careful:
                thoughts.append(f"check {a} + {stated} = {target} ok .")
            return concluded(thoughts, a, stated, target)
        if sweep == 0 and habits.careful:
            thoughts.append("none left , wait , one was missed . again .")
    a, b = rng.sample(numbers, 2)
    thoughts.append(f"none left . guess {a} and {b} .")
    return concluded(thoughts, a, b, target)


def concluded(thoughts: list[str], a: int, b: int, target: int) -> Worked:
    return Worked(" ".join(thoughts), (f"{min(a, b)} + {max(a, b)} = {target} .",), named(a, b))


def perturb(problem: Problem, rng: random.Random) -> Problem:
    """The problem misread in one place: a number or the target changed, such that some pair fits."""
    numbers, target = problem.facts
    for _ in range(20):
        changed = list(numbers)
        a, b = rng.sample(range(len(changed)), 2)
        if rng.random() < 0.5:
            changed[a] = max(1, min(LARGEST, changed[a] + rng.choice((-3, -2, -1, 1, 2, 3))))
        if changed[a] != changed[b] and {a, b} != set(solutions(numbers, target)[0]):
            break
    return make(problem.level, tuple(changed), changed[a] + changed[b])
