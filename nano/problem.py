"""The plain types of the nano world: a problem, a writer's habits, a worked answer."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

SPLITS = ("pretrain", "reward", "examples", "queries", "dev", "test")
_SHARES = {"pretrain": 11, "reward": 3, "examples": 1, "queries": 3, "dev": 1, "test": 1}
_WHEEL = tuple(name for name, share in _SHARES.items() for _ in range(share))


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with one right answer.

    `facts` is the whole problem as plain values: two problems are the same iff family and facts are.
    """

    family: str
    level: int
    facts: tuple[Any, ...]
    query: str
    answer: str

    @property
    def split(self) -> str:
        """The split of this problem, by a hash of its family and facts: splits are disjoint by construction."""
        digest = hashlib.sha256(f"{self.family}:{self.facts!r}".encode()).digest()
        return _WHEEL[int.from_bytes(digest[:8], "big") % len(_WHEEL)]


@dataclass(frozen=True, slots=True)
class Habits:
    """How a writer works: how often a step slips, whether steps are checked, how often a slip is then caught."""

    slip: float = 0.12
    careful: bool = True
    catch: float = 0.97

    def slips(self, rng: random.Random, weight: float = 1.0) -> bool:
        return rng.random() < self.slip * weight

    def catches(self, rng: random.Random) -> bool:
        return self.careful and rng.random() < self.catch


@dataclass(frozen=True, slots=True)
class Worked:
    """A derivation as written, right or wrong: the answer is what the steps gave, never the gold answer."""

    thoughts: str
    steps: tuple[str, ...]
    answer: str

    @property
    def solution(self) -> str:
        return " ".join((*self.steps, f"answer : {self.answer} ."))


def other(rng: random.Random, options: list[str] | tuple[str, ...], than: str) -> str:
    """A random one of `options` other than `than`."""
    return rng.choice([o for o in options if o != than])
