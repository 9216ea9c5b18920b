"""Ordering: sort people by age from shuffled comparisons of neighbours, then name the one at a place."""

from __future__ import annotations

import random

from nano.problem import Habits, Problem, Worked, other

PEOPLE = ("ann", "bob", "cid", "dee", "eve", "fay", "gus", "hal")
SIZES = {0: (2, 2), 1: (3, 3), 2: (4, 4), 3: (5, 5)}


def make(level: int, order: tuple[str, ...], shuffle: tuple[int, ...], place: int) -> Problem:
    clues = " . ".join(f"{order[i]} is older than {order[i + 1]}" for i in shuffle)
    return Problem("ordering", level, (order, shuffle, place), f"{clues} . who is number {place} ?", order[place - 1])


def sample(rng: random.Random, level: int) -> Problem:
    n = rng.randint(*SIZES[level])
    order = tuple(rng.sample(PEOPLE, n))
    shuffle = tuple(rng.sample(range(n - 1), n - 1))
    return make(level, order, shuffle, rng.randint(2, n))


def derive(problem: Problem, rng: random.Random, habits: Habits) -> Worked:
    order, shuffle, place = problem.facts
    below = {order[i]: order[i + 1] for i in range(len(order) - 1)}
    thoughts = [f"goal : find number {place} . plan : find the oldest , then go down ."]
    first = None
    for i in shuffle:
        tried = order[i]
        if i and not habits.slips(rng, 0.5):
            thoughts.append(f"try {tried} , no .")
            continue
        thoughts.append(f"try {tried} , yes .")
        if i and habits.catches(rng):
            thoughts.append(f"check {tried} , wait , no .")
            continue
        if habits.careful:
            thoughts.append(f"check {tried} ok .")
        first = tried
        break
    if first is None:
        first = order[shuffle[0]]
    line = [first]
    while line[-1] in below and len(line) < place:
        true = stated = below[line[-1]]
        if habits.slips(rng):
            stated = other(rng, order, true)
        thoughts.append(f"{line[-1]} > {stated} .")
        if stated != true and habits.catches(rng):
            thoughts.append(f"check {line[-1]} > {true} , wait , not {stated} .")
            stated = true
        elif habits.careful:
            thoughts.append(f"check {line[-1]} > {stated} ok .")
        line.append(stated)
    return Worked(" ".join(thoughts), (" > ".join(line) + " .",), line[-1])


def perturb(problem: Problem, rng: random.Random) -> Problem:
    """The problem misread in one place: two people swapped, or another place asked for."""
    order, shuffle, place = problem.facts
    people = list(order)
    if rng.random() < 0.3:
        place = rng.choice([n for n in range(1, len(people) + 1) if n != place])
    else:
        i, j = rng.sample(range(len(people)), 2)
        people[i], people[j] = people[j], people[i]
    return make(problem.level, tuple(people), shuffle, place)
