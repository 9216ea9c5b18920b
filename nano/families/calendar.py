"""Calendar walks: forward and back over the days of the week, and over the months of the year."""

from __future__ import annotations

from nano.families.chain import Chain, Move, walk

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MOVES = tuple((sign, n) for sign in "+-" for n in range(2, 7))


def days(move: Move) -> str:
    return f"go {move[1]} days {'on' if move[0] == '+' else 'back'}"


def months(move: Move) -> str:
    return f"go {move[1]} months {'on' if move[0] == '+' else 'back'}"


WEEK = Chain("week", "day", "today is {start}", "which day is it", DAYS, MOVES, days, walk(DAYS))
YEAR = Chain("year", "month", "this is {start}", "which month is it", MONTHS, MOVES, months, walk(MONTHS))
