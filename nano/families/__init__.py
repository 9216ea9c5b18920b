"""The six families of verifiable problems, one per topic: sample, derive (with a writer's habits), perturb."""

from __future__ import annotations

import random
from typing import Protocol

from nano.families import ordering, pair_sum
from nano.families.arithmetic import ARITHMETIC
from nano.families.calendar import WEEK, YEAR
from nano.families.compass import COMPASS
from nano.problem import Habits, Problem, Worked


class Family(Protocol):
    """The functions of a family, which is a module or a `Chain`."""

    def sample(self, rng: random.Random, level: int) -> Problem:
        """A random problem of a level."""

    def derive(self, problem: Problem, rng: random.Random, habits: Habits) -> Worked:
        """The problem as a writer with these habits works it."""

    def perturb(self, problem: Problem, rng: random.Random) -> Problem:
        """The problem misread in one place."""


FAMILIES: dict[str, Family] = {
    "arithmetic": ARITHMETIC,
    "week": WEEK,
    "year": YEAR,
    "compass": COMPASS,
    "ordering": ordering,
    "pair_sum": pair_sum,
}
LEVELS = (0, 1, 2, 3)
