"""Object tracking: people swap what they hold; who holds what at the end?"""

from __future__ import annotations

import random

from nano.problem import Habits, Problem, Worked

PEOPLE = ("ann", "bob", "cid", "dee", "eve", "fay", "gus", "hal")
ITEMS = ("cup", "hat", "pen", "key", "map", "bag", "fan", "box")
LENGTHS = {0: (1, 1), 1: (2, 2), 2: (3, 3), 3: (4, 4)}
Swap = tuple[str, str]


def after(holds: dict[str, str], swap: Swap) -> dict[str, str]:
    one, two = swap
    return {**holds, one: holds[two], two: holds[one]}


def make(level: int, people: tuple[str, ...], items: tuple[str, ...], swaps: tuple[Swap, ...], asked: str) -> Problem:
    holds = dict(zip(people, items, strict=True))
    query = " , ".join(f"{p} has the {i}" for p, i in holds.items())
    for swap in swaps:
        holds = after(holds, swap)
    query += " . " + " . ".join(f"{a} and {b} swap" for a, b in swaps) + f" . what does {asked} have ?"
    return Problem("tracking", level, (people, items, swaps, asked), query, holds[asked])


def sample(rng: random.Random, level: int) -> Problem:
    people, items = tuple(rng.sample(PEOPLE, 3)), tuple(rng.sample(ITEMS, 3))
    swaps = tuple(draw_swap(rng, people) for _ in range(rng.randint(*LENGTHS[level])))
    return make(level, people, items, swaps, rng.choice(people))


def draw_swap(rng: random.Random, people: tuple[str, ...]) -> Swap:
    one, two = rng.sample(people, 2)
    return one, two


def shown(holds: dict[str, str]) -> str:
    return " , ".join(f"{p} {i}" for p, i in holds.items())


def derive(problem: Problem, rng: random.Random, habits: Habits) -> Worked:
    people, items, swaps, asked = problem.facts
    holds = dict(zip(people, items, strict=True))
    thoughts = [f"goal : find what {asked} has . plan : one step at a time ."]
    steps = []
    for swap in swaps:
        true = said = after(holds, swap)
        if habits.slips(rng, 1.5):
            said = after(true, draw_swap(rng, people))
        expression = f"{swap[0]} and {swap[1]} swap :"
        thoughts.append(f"{expression} {shown(said)} .")
        if said != true and habits.catches(rng):
            thoughts.append(f"check {shown(true)} , wait , not {shown(said)} .")
            said = true
        elif habits.careful:
            thoughts.append(f"check {shown(said)} ok .")
        steps.append(f"{expression} {shown(said)} .")
        holds = said
    return Worked(" ".join(thoughts), tuple(steps), holds[str(asked)])


def perturb(problem: Problem, rng: random.Random) -> Problem:
    """The problem misread in one place: a swap skipped or changed, two items mixed up, another person asked for."""
    people, items, swaps, asked = problem.facts
    changed, held = list(swaps), list(items)
    at = rng.randrange(len(changed))
    how = rng.choice(("skip", "swap", "items", "asked"))
    if how == "skip" and len(changed) > 1:
        del changed[at]
    elif how == "items":
        i, j = rng.sample(range(len(held)), 2)
        held[i], held[j] = held[j], held[i]
    elif how == "asked":
        asked = rng.choice([p for p in people if p != asked])
    else:
        changed[at] = draw_swap(rng, people)
    return make(problem.level, people, tuple(held), tuple(changed), str(asked))
