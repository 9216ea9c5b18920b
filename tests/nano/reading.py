"""An independent reader of the nano world's queries: from the text alone to the facts and the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

WEEK = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
PATTERNS = {
    "arithmetic": r"start with \d+ \. (?:(?:add \d+|take away \d+|double it|halve it) \. )+what number is left \?",
    "calendar": r"today is \w+ \. (?:go \d days (?:on|back) \. )+which day is it \?",
    "tracking": r"\w+ has the \w+(?: , \w+ has the \w+)+ \. (?:\w+ and \w+ swap \. )+what does \w+ have \?",
    "ordering": r"\w+ is older than \w+(?: \. \w+ is older than \w+)* \. who is number \d \?",
    "pair_sum": r"which two of \d+(?: , \d+)+ add up to \d+ \?",
    "congruence": r"which number from 1 to \d+ times \d+ plus \d+ leaves \d+ when divided by \d+ \?",
}
ANY = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in PATTERNS.items()))


def queries_in(text: str) -> Iterator[str]:
    """Every query that a text holds."""
    return (found[0] for found in ANY.finditer(text))


def family(query: str) -> str:
    found = ANY.fullmatch(query)
    assert found is not None, query
    assert found.lastgroup is not None
    return found.lastgroup


def read(query: str) -> tuple[str, tuple[Any, ...], str]:
    """Family, facts as the family's module holds them, and the answer worked out here."""
    name = family(query)
    facts, answer = globals()[f"_{name}"](query)
    return name, facts, answer


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _arithmetic(query: str) -> tuple[tuple[Any, ...], str]:
    start, *told, _ = query.split(" . ")
    value = first = numbers(start)[0]
    ops = []
    for each in told:
        if each == "double it":
            ops.append(("double", 2))
            value += value
        elif each == "halve it":
            ops.append(("halve", 2))
            value, rest = divmod(value, 2)
            assert rest == 0, query
        else:
            n = numbers(each)[0]
            ops.append((each.rpartition(" ")[0], n))
            value += n if each.startswith("add") else -n
        assert 0 <= value <= 99, query
    return (first, tuple(ops)), str(value)


def _calendar(query: str) -> tuple[tuple[Any, ...], str]:
    start, *told, _ = query.split(" . ")
    day = start.split()[-1]
    moves = tuple(numbers(each)[0] * (1 if each.endswith("on") else -1) for each in told)
    at = WEEK.index(day)
    for move in moves:  # a day at a time
        for _ in range(abs(move)):
            at += 1 if move > 0 else -1
            at = 0 if at == 7 else 6 if at == -1 else at
    return (day, moves), WEEK[at]


def _tracking(query: str) -> tuple[tuple[Any, ...], str]:
    held, *told, asked = query.split(" . ")
    pairs = [re.fullmatch(r"(\w+) has the (\w+)", each).groups() for each in held.split(" , ")]  # type: ignore[union-attr]
    people, items = [p for p, _ in pairs], [i for _, i in pairs]
    owner = {i: p for p, i in pairs}  # thing by thing: who holds it
    swaps = tuple((each.split()[0], each.split()[2]) for each in told)
    for a, b in swaps:
        owner = {i: b if p == a else a if p == b else p for i, p in owner.items()}
    who = asked.split()[2]
    (answer,) = [i for i, p in owner.items() if p == who]
    return (tuple(people), tuple(items), swaps, who), answer


def _ordering(query: str) -> tuple[tuple[Any, ...], str]:
    *told, asked = query.split(" . ")
    clues = [(each.split()[0], each.split()[-1]) for each in told]
    people = {p for clue in clues for p in clue}
    older = {p: {a for a, b in clues if b == p} for p in people}
    order: list[str] = []
    while len(order) < len(people):  # the oldest of those left: all who are older are placed
        (oldest,) = [p for p in people if p not in order and older[p] <= set(order)]
        order.append(oldest)
    place = numbers(asked)[0]
    shuffle = tuple(order.index(a) for a, _ in clues)
    return (tuple(order), shuffle, place), order[place - 1]


def _pair_sum(query: str) -> tuple[tuple[Any, ...], str]:
    *listed, target = numbers(query)
    found = {(a, b) for a in listed for b in listed if a < b and a + b == target}
    assert len(found) == 1, query
    a, b = found.pop()
    return (tuple(listed), target), f"{a} and {b}"


def _congruence(query: str) -> tuple[tuple[Any, ...], str]:
    _, last, a, b, r, m = numbers(query)
    assert last == m - 1, query
    (x,) = [x for x in range(1, m) if (a * x + b - r) / m == (a * x + b - r) // m]
    return (a, b, m, r), str(x)


def last_stated(query: str, solution: str) -> str:
    """What the last step of a worked solution gives for the query, whatever it then says its answer is."""
    name = family(query)
    steps = solution.rpartition("answer :")[0].strip().removesuffix(" .")
    if name in ("arithmetic", "calendar"):
        return steps.rsplit(" = ", 1)[1]
    if name == "tracking":
        asked = query.split()[-3]
        held = dict(each.split() for each in steps.rsplit(" : ", 1)[1].split(" , "))
        return str(held[asked])
    if name == "ordering":
        return steps.rsplit(" > ", 1)[-1]
    if name == "pair_sum":
        return f"{steps.split()[0]} and {steps.split()[2]}"
    return steps.split()[0]
