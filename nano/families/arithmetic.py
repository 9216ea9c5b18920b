"""Arithmetic chains: add and take away on a dial of 31 numbers, 0 to 30 (0 follows 30)."""

from __future__ import annotations

from nano.families.chain import Chain

NUMBERS = tuple(str(n) for n in range(31))

ARITHMETIC = Chain(
    name="arithmetic",
    goal="number",
    opening="on a dial of 31 start with {start}",
    question="what number is left",
    states=NUMBERS,
    moves=tuple((sign, n) for sign in "+-" for n in range(1, 10)),
    forward="add {n}",
    back="take away {n}",
)
