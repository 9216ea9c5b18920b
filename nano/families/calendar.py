"""Calendar walks: forward and back over the days of the week, and over the months of the year."""

from __future__ import annotations

from nano.families.chain import Chain

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MOVES = tuple((sign, n) for sign in "+-" for n in range(2, 7))

WEEK = Chain("week", "day", "today is {start}", "which day is it", DAYS, MOVES, "go {n} days on", "go {n} days back")
YEAR = Chain(
    name="year",
    goal="month",
    opening="this is {start}",
    question="which month is it",
    states=MONTHS,
    moves=MOVES,
    forward="go {n} months on",
    back="go {n} months back",
)
