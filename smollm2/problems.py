"""The problems of the SmolLM2 world: four families of everyday questions in plain English, each with three levels."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Tom", "Mia", "Sam", "Lena", "Omar", "Ruth", "Ben", "Aiko")
THINGS = ("apples", "marbles", "books", "shells", "coins", "stamps", "cards", "stones")
GOODS = {"pencil": "pencils", "ticket": "tickets", "cup": "cups", "lamp": "lamps", "ball": "balls", "hat": "hats"}
LEVELS = (1, 2, 3)
_SHARES = {"queries": 6, "dev": 1, "test": 2, "examples": 1}
_WHEEL = tuple(split for split, share in _SHARES.items() for _ in range(share))


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with one right answer. Problems of a family are the same if their `facts` are, however worded."""

    family: str
    level: int
    facts: tuple[Any, ...]
    query: str
    answer: str

    @property
    def split(self) -> str:
        """The split of this problem, by a hash of family and facts: splits share no problem, whatever its wording."""
        digest = hashlib.sha256(f"{self.family}:{self.facts!r}".encode()).digest()
        return _WHEEL[int.from_bytes(digest[:8], "big") % len(_WHEEL)]


def total(rng: random.Random, level: int) -> Problem:
    """A sum or difference of two numbers, which grow with the level."""
    most = {1: 10, 2: 20, 3: 60}[level]
    first, second = rng.randint(2, most), rng.randint(2, most)
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    if rng.random() < 0.5:
        query = rng.choice(
            [
                f"What is {first} + {second}?",
                f"{name} has {first} {things} and gets {second} more. How many {things} does {name} have now?",
            ]
        )
        return Problem("total", level, ("+", first, second), query, str(first + second))
    first, second = max(first, second), min(first, second)
    query = rng.choice(
        [
            f"What is {first} - {second}?",
            f"{name} has {first} {things} and gives away {second}. How many {things} are left?",
        ]
    )
    return Problem("total", level, ("-", first, second), query, str(first - second))


def largest(rng: random.Random, level: int) -> Problem:
    """The largest or smallest of three numbers, or of five at level 3; those of level 2 are close together."""
    if level == 2:
        tens = 10 * rng.randint(1, 9)
        numbers = rng.sample(range(tens, tens + 20), 3)
    else:
        numbers = rng.sample(range(10, 100), 3 if level == 1 else 5)
    word, pick = rng.choice((("largest", max), ("smallest", min)))
    shown = ", ".join(map(str, numbers[:-1]))
    query = rng.choice(
        [
            f"Which number is the {word}: {shown} or {numbers[-1]}?",
            f"What is the {word} of the numbers {shown} and {numbers[-1]}?",
        ]
    )
    return Problem("largest", level, (word, *sorted(numbers)), query, str(pick(numbers)))


def price(rng: random.Random, level: int) -> Problem:
    """The price of some things of one kind; at level 3, of two kinds."""
    many = {1: 4, 2: 9, 3: 4}[level]
    count, each = rng.randint(2, many), rng.randint(2, many)
    (one, more), (other, _) = rng.sample(list(GOODS.items()), 2)
    if level == 3:
        extra = rng.randint(1, 5)
        prices = f"A {one} costs {each} dollars and a {other} costs {extra} dollars."
        query = f"{prices} How much are {count} {more} and one {other}?"
        return Problem("price", level, (count, each, extra), query, str(count * each + extra))
    query = rng.choice(
        [
            f"One {one} costs {each} dollars. How many dollars do {count} {more} cost?",
            f"{rng.choice(NAMES)} buys {count} {more} at {each} dollars each. How much is that in dollars?",
        ]
    )
    return Problem("price", level, (count, each), query, str(count * each))


def day(rng: random.Random, level: int) -> Problem:
    """The day of the week some days after another, or before it at level 3."""
    start, count = rng.randrange(7), rng.randint(*{1: (1, 3), 2: (3, 6), 3: (1, 4)}[level])
    if level == 3:
        query = f"Today is {DAYS[start]}. Which day of the week was it {count} days ago?"
        return Problem("day", level, (start, -count), query, DAYS[(start - count) % 7])
    days = "1 day" if count == 1 else f"{count} days"
    query = rng.choice(
        [
            f"Today is {DAYS[start]}. Which day of the week is it in {days}?",
            f"Which day of the week comes {days} after {DAYS[start]}?",
        ]
    )
    return Problem("day", level, (start, count), query, DAYS[(start + count) % 7])


FAMILIES: Mapping[str, Callable[[random.Random, int], Problem]] = {
    "total": total,
    "largest": largest,
    "price": price,
    "day": day,
}


def draw(rng: random.Random, split: str, family: str, level: int) -> Problem:
    """A random problem of a split."""
    while True:
        problem = FAMILIES[family](rng, level)
        if problem.split == split:
            return problem
