"""Arithmetic chains: add and take away on a dial of 21 numbers, 0 to 20 (past 20 it starts again at 0)."""

from __future__ import annotations

from nano.families.chain import Chain, Move, walk

NUMBERS = tuple(str(n) for n in range(21))


def told(move: Move) -> str:
    return f"add {move[1]}" if move[0] == "+" else f"take away {move[1]}"


ARITHMETIC = Chain(
    name="arithmetic",
    goal="number",
    opening="on a dial of 21 start with {start}",
    question="what number is left",
    states=NUMBERS,
    moves=tuple((sign, n) for sign in "+-" for n in range(1, 7)),
    told=told,
    after=walk(NUMBERS),
)
