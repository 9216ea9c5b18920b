"""Chains: problems that carry one state (a number, a day, a direction) through a list of moves, one step at a time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from nano.problem import Habits, Problem, Worked

LENGTHS = {0: (1, 1), 1: (2, 3), 2: (4, 4), 3: (5, 6)}  # moves, by level
Move = tuple[str, int]


@dataclass(frozen=True)
class Chain:
    """A family of chains. States are words of the vocabulary."""

    name: str
    goal: str
    opening: str  # with {start}
    question: str
    states: tuple[str, ...]
    moves: tuple[Move, ...]
    forward: str  # the move "+ n" in words, with {n}
    back: str  # the move "- n"

    def after(self, state: str, move: Move) -> str:
        """The state that a move leads to; the states form a ring."""
        sign, steps = move
        return self.states[(self.states.index(state) + (steps if sign == "+" else -steps)) % len(self.states)]

    def make(self, level: int, start: str, moves: tuple[Move, ...]) -> Problem:
        state = start
        for move in moves:
            state = self.after(state, move)
        phrases = " . ".join((self.forward if sign == "+" else self.back).format(n=n) for sign, n in moves)
        query = f"{self.opening.format(start=start)} . {phrases} . {self.question} ?"
        return Problem(self.name, level, (start, moves), query, state)

    def sample(self, rng: random.Random, level: int) -> Problem:
        moves = tuple(rng.choice(self.moves) for _ in range(rng.randint(*LENGTHS[level])))
        return self.make(level, rng.choice(self.states), moves)

    def slipped(self, rng: random.Random, true: str) -> str:
        """A wrong state, close to the right one."""
        at, count = self.states.index(true), len(self.states)
        near = dict.fromkeys(self.states[(at + distance) % count] for distance in (-2, -1, 1, 2))
        return rng.choice([state for state in near if state != true])

    def derive(self, problem: Problem, rng: random.Random, habits: Habits) -> Worked:
        state, moves = problem.facts
        thoughts = [f"goal : find the {self.goal} . plan : one step at a time ."]
        steps = []
        for move in moves:
            expression = f"{state} {move[0]} {move[1]}"
            true = stated = self.after(state, move)
            if habits.slips(rng):
                stated = self.slipped(rng, true)
            thoughts.append(f"{expression} = {stated} .")
            if stated != true and habits.catches(rng):
                thoughts.append(f"check {expression} = {true} , wait , not {stated} .")
                stated = true
            elif habits.careful:
                thoughts.append(f"check {expression} = {stated} ok .")
            steps.append(f"{expression} = {stated} .")
            state = stated
        return Worked(" ".join(thoughts), tuple(steps), state)

    def perturb(self, problem: Problem, rng: random.Random) -> Problem:
        """The problem misread in one place: a move skipped, repeated or changed, or the start changed."""
        start, moves = problem.facts
        changed: list[Any] = list(moves)
        at = rng.randrange(len(changed))
        how = rng.choice(("skip", "repeat", "change", "start"))
        if how == "skip" and len(changed) > 1:
            del changed[at]
        elif how == "repeat":
            changed.insert(at, changed[at])
        elif how == "start":
            start = rng.choice(self.states)
        else:
            changed[at] = rng.choice(self.moves)
        return self.make(problem.level, start, tuple(changed))
