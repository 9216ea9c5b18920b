"""The six families of verifiable problems, a topic each: sample, derive (with a writer's habits), perturb."""

from __future__ import annotations

import random
from typing import Protocol

from nano.families import ordering, pair_sum
from nano.families.arithmetic import ARITHMETIC
from nano.families.calendar import WEEK, YEAR
from nano.families.compass import COMPASS
from nano.problem import Habits, Problem, Worked


class Family(Protocol):
    """What a family can do; a module or a `Chain`."""

    def sample(self, rng: random.Random, level: int) -> Problem: ...

    def derive(self, problem: Problem, rng: random.Random, habits: Habits) -> Worked: ...

    def perturb(self, problem: Problem, rng: random.Random) -> Problem: ...


FAMILIES: dict[str, Family] = {
    "arithmetic": ARITHMETIC,
    "week": WEEK,
    "year": YEAR,
    "compass": COMPASS,
    "ordering": ordering,
    "pair_sum": pair_sum,
}
LEVELS = (0, 1, 2, 3)
