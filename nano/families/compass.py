"""Compass: which way do you face after quarter turns to the right and left?"""

from __future__ import annotations

from nano.families.chain import Chain, Move, walk

DIRECTIONS = ("north", "east", "south", "west")


def phrase(move: Move) -> str:
    return f"turn {'right' if move[0] == '+' else 'left'} {move[1]} times"


COMPASS = Chain(
    name="compass",
    goal="direction",
    opening="face {start}",
    question="where do you face",
    states=DIRECTIONS,
    moves=tuple((sign, n) for sign in "+-" for n in range(1, 6)),
    phrase=phrase,
    after=walk(DIRECTIONS),
)
