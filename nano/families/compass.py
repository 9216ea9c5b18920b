"""Compass: which way do you face after quarter turns to the right and left?"""

from __future__ import annotations

from nano.families.chain import Chain

DIRECTIONS = ("north", "east", "south", "west")

COMPASS = Chain(
    name="compass",
    goal="direction",
    opening="face {start}",
    question="where do you face",
    states=DIRECTIONS,
    moves=tuple((sign, n) for sign in "+-" for n in range(1, 6)),
    forward="turn right {n} times",
    back="turn left {n} times",
)
