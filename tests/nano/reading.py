"""An independent parser of the nano world's queries: from the text alone to the facts and the answer.

It shares nothing with nano/families but the wording: numbers on the dial are counted one at a time, days and months
come from the real calendar, directions from turning a vector.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import permutations
from typing import Any

PATTERNS = {
    "arithmetic": r"on a dial of 31 start with \d+ \. (?:(?:add|take away) \d+ \. )+what number is left \?",
    "week": r"today is \w+ \. (?:go \d+ days (?:on|back) \. )+which day is it \?",
    "year": r"this is \w+ \. (?:go \d+ months (?:on|back) \. )+which month is it \?",
    "compass": r"face \w+ \. (?:turn (?:right|left) \d+ times \. )+where do you face \?",
    "ordering": r"\w+ is older than \w+(?: \. \w+ is older than \w+)* \. who is number \d+ \?",
    "pair_sum": r"which two of \d+(?: , \d+)+ add up to \d+ \?",
}
CHAINS = ("arithmetic", "week", "year", "compass")
ANY = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in PATTERNS.items()))
FORWARD = re.compile(r"\b(?:add|on|right)\b")

Facts = tuple[Any, ...]


def queries_in(text: str) -> Iterator[str]:
    """All queries in a text."""
    return (found[0] for found in ANY.finditer(text))


def family(query: str) -> str:
    found = ANY.fullmatch(query)
    assert found is not None, query
    assert found.lastgroup is not None
    return found.lastgroup


def read(query: str) -> tuple[str, Facts, str]:
    """Family, facts as the family stores them, and the answer computed here."""
    name = family(query)
    if name in CHAINS:
        start, moves = chain(query)
        state = start
        for sign, count in moves:
            state = moved(name, state, sign, count)
        return name, (start, moves), state
    facts, answer = _ordering(query) if name == "ordering" else _pair_sum(query)
    return name, facts, answer


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def chain(query: str) -> tuple[str, tuple[tuple[str, int], ...]]:
    """A chain's start and its moves."""
    opening, *phrases, _ = query.split(" . ")
    return opening.split()[-1], tuple(("+" if FORWARD.search(each) else "-", numbers(each)[0]) for each in phrases)


def moved(name: str, state: str, sign: str, count: int) -> str:
    """A chain's state after one move."""
    forward = sign == "+"
    if name == "arithmetic":
        at = int(state)
        assert 0 <= at <= 30, state
        for _ in range(count):
            at = (0 if at == 30 else at + 1) if forward else (30 if at == 0 else at - 1)
        return str(at)
    if name == "week":
        (day,) = [d for d in (date(2024, 1, n) for n in range(1, 8)) if _name(d, "%a") == state]
        return _name(day + timedelta(days=count if forward else -count), "%a")
    if name == "year":
        (month,) = [n for n in range(1, 13) if _name(date(2024, n, 15), "%b") == state]
        months = date(2024, 1, 15).year * 12 + month - 1 + (count if forward else -count)
        return _name(date(months // 12, months % 12 + 1, 15), "%b")
    compass = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
    x, y = compass[state]
    for _ in range(count):
        x, y = (y, -x) if forward else (-y, x)
    (facing,) = [each for each, vector in compass.items() if vector == (x, y)]
    return facing


def _name(day: date, form: str) -> str:
    return day.strftime(form).lower()


def _ordering(query: str) -> tuple[Facts, str]:
    *comparisons, question = query.split(" . ")
    clues = [(each.split()[0], each.split()[-1]) for each in comparisons]
    people = sorted({person for clue in clues for person in clue})
    (order,) = [p for p in permutations(people) if all(p.index(a) < p.index(b) for a, b in clues)]
    place = numbers(question)[0]
    return (order, tuple(order.index(a) for a, _ in clues), place), order[place - 1]


def _pair_sum(query: str) -> tuple[Facts, str]:
    *listed, target = numbers(query)
    (pair,) = pairs(query)
    return (tuple(listed), target), "{} and {}".format(*pair)


def pairs(query: str) -> set[tuple[int, int]]:
    """All pairs of the list that add up to the target, the smaller number first."""
    *listed, target = numbers(query)
    return {(a, b) for a, b in permutations(listed, 2) if a <= b and a + b == target}


def is_solution(query: str, solution: str) -> bool:
    """Whether a worked solution is right in every step and in its answer, judging by the query's text alone."""
    steps, _, answer = solution.removesuffix(" .").rpartition("answer : ")
    stated = steps.strip().removesuffix(" .")
    name = family(query)
    if name in CHAINS:
        state, moves = chain(query)
        expected = []
        for sign, count in moves:
            before, state = state, moved(name, state, sign, count)
            expected.append(f"{before} {sign} {count} = {state}")
        return stated == " . ".join(expected) and answer == state
    if name == "ordering":
        (order, _, place), last = _ordering(query)
        return stated == " > ".join(order[:place]) and answer == last
    *_, target = numbers(query)
    return any(stated == f"{a} + {b} = {target}" and answer == f"{a} and {b}" for a, b in pairs(query))


def last_stated(query: str, solution: str) -> str:
    """The answer that the last step of a worked solution gives, whatever the stated answer is."""
    steps = solution.rpartition("answer :")[0].strip().removesuffix(" .")
    name = family(query)
    if name in CHAINS:
        return steps.rsplit(" = ", 1)[1]
    if name == "ordering":
        return steps.rsplit(" > ", 1)[-1]
    return f"{steps.split()[0]} and {steps.split()[2]}"
