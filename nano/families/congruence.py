"""Linear congruences: which small number times a, plus b, leaves r when divided by m?"""

from __future__ import annotations

import math
import random

from nano.problem import Habits, Problem, Worked

MODULI = {0: (3,), 1: (4, 5), 2: (5, 6, 7), 3: (7, 8)}
FACTORS, SUMMANDS = (2, 12), (1, 15)


def make(level: int, a: int, b: int, m: int, r: int) -> Problem:
    x = next((x for x in range(1, m) if (a * x + b) % m == r), None)
    query = f"which number from 1 to {m - 1} times {a} plus {b} leaves {r} when divided by {m} ?"
    return Problem("congruence", level, (a, b, m, r), query, str(x) if x is not None else "none")


def sample(rng: random.Random, level: int) -> Problem:
    while True:
        m, a, b = rng.choice(MODULI[level]), rng.randint(*FACTORS), rng.randint(*SUMMANDS)
        x = rng.randint(1, m - 1)
        if math.gcd(a, m) == 1 and a * (m - 1) + b <= 99:
            return make(level, a, b, m, (a * x + b) % m)


def tried(a: int, b: int, m: int, x: int, remainder: int) -> str:
    total = a * x + b
    return f"{x} x {a} + {b} = {total} , {total} mod {m} = {remainder}"


def derive(problem: Problem, rng: random.Random, habits: Habits) -> Worked:
    a, b, m, r = problem.facts
    thoughts = [f"goal : leave {r} . plan : try each in turn ."]
    for sweep, calm in enumerate((1.0, 0.3) if habits.careful else (1.0,)):
        for x in range(1, m):
            total = a * x + b
            true = said = total % m
            if true == r and habits.slips(rng, 2.5 * calm):
                said = rng.choice([n for n in range(m) if n != r])
            elif true != r and habits.slips(rng, 0.5 * calm):
                said = r
            if said != r:
                thoughts.append(f"try {tried(a, b, m, x, said)} , no .")
                continue
            thoughts.append(f"try {tried(a, b, m, x, said)} , yes .")
            if said != true and habits.catches(rng):
                thoughts.append(f"check {total} mod {m} = {true} , wait , not {r} .")
                continue
            if habits.careful:
                thoughts.append(f"check {total} mod {m} = {said} ok .")
            return Worked(" ".join(thoughts), (f"{tried(a, b, m, x, said)} .",), str(x))
        if sweep == 0 and habits.careful:
            thoughts.append("none left , wait , one was missed . again .")
    x = rng.randint(1, m - 1)
    thoughts.append(f"none left . guess {x} .")
    return Worked(" ".join(thoughts), (f"{tried(a, b, m, x, r)} .",), str(x))


def perturb(problem: Problem, rng: random.Random) -> Problem:
    """The problem misread in one place: factor, summand, modulus or remainder changed, still solvable."""
    while True:
        a, b, m, r = problem.facts
        how = rng.choice("abmr")
        if how == "a":
            a = rng.randint(*FACTORS)
        elif how == "b":
            b = rng.randint(*SUMMANDS)
        elif how == "m":
            m = rng.choice(MODULI[problem.level])
        else:
            r = rng.randint(0, m - 1)
        changed = make(problem.level, a, b, m, r)
        if changed.answer != "none" and changed.facts != problem.facts and a * (m - 1) + b <= 99:
            return changed
