"""An independent reader of thoughts: it follows every line of a derivation and refuses one that does not hold.

Like reading.py it works from the text alone and shares nothing with nano/families but the wording.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from reading import CHAINS, ORDINALS, chain, clues_in, family, moved, numbers, told_moves

GOALS = {"arithmetic": "number", "week": "day", "year": "month", "compass": "direction"}

_STEP = (
    r"(?P<told>(?:"
    + "|".join(ORDINALS)
    + r") [a-z]+ [a-z0-9 ]+?) : (?P<before>\w+) (?P<sign>[+-]) (?P<n>\d+) = (?P<said>\w+) \. "
    r"(?P<check>check (?P<of>\w+) (?P<undo>[+-]) (?P<back>\d+) = (?P<found>\w+) "
    r"(?:ok|, wait , not (?P<unlike>\w+) \. (?P<again>\w+ [+-] \d+) = (?P<true>\w+)) \. )?"
)
_TRIED = (
    r"try (?P<tried>\w+) : (?P<older>\w+) is older , (?P<verdict>yes|no) \. "
    r"(?P<check>check (?P<of>\w+) is older than (?P<than>\w+) (?P<caught>ok|, wait , no) \. )?"
)
_PLACED = (
    r"(?P<before>\w+) > (?P<said>\w+) \. "
    r"(?P<check>check (?P<of>\w+) is older than (?P<found>\w+) "
    r"(?:ok|, wait , not (?P<unlike>\w+) \. (?P<again>\w+) > (?P<true>\w+)) \. )?"
)
_PAIRED = (
    r"(?P<lost>none left , wait , one was missed \. again \. )|none left \. guess (?P<one>\d+) and (?P<two>\d+) \. |"
    r"try (?P<tried>\d+) : (?:(?P<big>too big)|(?P<sum>\d+) - (?P<less>\d+) = (?P<said>\d+)) , (?P<verdict>yes|no) \. "
    r"(?P<check>check (?P<a>\d+) \+ (?P<b>\d+) = (?P<found>\d+) (?:ok|, wait , not (?P<unlike>\d+)) \. )?"
)
_HEAD = r"goal : [a-z0-9 ]+ \. plan : [a-z ]+(?: , [a-z ]+)? \. "
_BARE = re.compile(r"\(\?P<\w+>")


def _many(*patterns: str) -> str:
    return "".join(f"(?:{_BARE.sub('(?:', pattern)})*" for pattern in patterns)


_BODY = {"ordering": (_TRIED, _PLACED), "pair_sum": (_PAIRED,)}
_STEPS = {"ordering": r"\w+(?: > \w+)* \. ", "pair_sum": r"\d+ \+ \d+ = \d+ \. "}


def parted(query: str, text: str) -> tuple[str, str]:
    """Thoughts and solution of a text that has one after the other."""
    name = family(query)
    body, steps = _many(*_BODY.get(name, (_STEP,))), _STEPS.get(name, r"(?:\w+ [+-] \d+ = \w+ \. )+")
    answer = r"\d+ and \d+" if name == "pair_sum" else r"\w+"
    found = re.fullmatch(rf"({_HEAD}{body})({steps}answer : {answer} \.)", text)
    assert found is not None, text
    return found[1].strip(), found[2]


@dataclass
class Audit:
    """What a derivation showed."""

    checks: int = 0
    unchecked: int = 0  # what a careful writer would have checked
    slips: int = 0  # false lines, whatever became of them
    caught: int = 0  # false steps found out
    kept: int = 0  # false steps that stood: unchecked, or called ok
    answer: str = ""
    steps: list[str] = field(default_factory=list)


def audit(query: str, thoughts: str, solution: str) -> Audit:
    """Follow the thoughts line by line: every line must be read, every verdict must follow from what stands there.

    Raises:
        AssertionError: something does not follow, or the solution is not what the thoughts came to.
    """
    name = family(query)
    seen = Audit()
    if name in CHAINS:
        _chain(name, query, _lines(thoughts, _goal(f"find the {GOALS[name]}", "one step at a time"), _STEP), seen)
    elif name == "ordering":
        head = _goal(f"find number {numbers(query)[-1]}", "find the oldest , then go down")
        tries, placed = _ordering_lines(thoughts, head)
        _ordering(query, tries, placed, seen)
    else:
        target = numbers(query)[-1]
        _pairs(query, _lines(thoughts, _goal(f"two that add up to {target}", "try each in turn"), _PAIRED), seen)
    assert solution == " ".join((*seen.steps, f"answer : {seen.answer} .")), (thoughts, solution)
    return seen


def _goal(goal: str, plan: str) -> str:
    return f"goal : {goal} . plan : {plan} . "


def _lines(thoughts: str, head: str, pattern: str) -> list[re.Match[str]]:
    """The lines of thoughts, all of them."""
    text = f"{thoughts} "
    assert text.startswith(head), text
    return _run(text, len(head), pattern, to_the_end=True)


def _run(text: str, at: int, pattern: str, *, to_the_end: bool) -> list[re.Match[str]]:
    found = []
    while at < len(text) and (line := re.compile(pattern).match(text, at)):
        found.append(line)
        at = line.end()
    assert at == len(text) or not to_the_end, text[at:]
    return found


def _ordering_lines(thoughts: str, head: str) -> tuple[list[re.Match[str]], list[re.Match[str]]]:
    text = f"{thoughts} "
    assert text.startswith(head), text
    tries = _run(text, len(head), _TRIED, to_the_end=False)
    assert tries, text
    return tries, _run(text, tries[-1].end(), _PLACED, to_the_end=True)


def _chain(name: str, query: str, lines: list[re.Match[str]], seen: Audit) -> None:
    state, moves = chain(query)
    for line, told, (sign, n) in zip(lines, told_moves(query), moves, strict=True):
        assert line["told"] == told  # the query's own words
        assert (line["before"], line["sign"], line["n"]) == (state, sign, str(n))
        said, right = line["said"], moved(name, state, sign, n)
        seen.slips += said != right
        if line["check"]:
            seen.checks += 1
            assert (line["of"], line["undo"], line["back"]) == (said, "-" if sign == "+" else "+", str(n))
            back = moved(name, said, line["undo"], n)
            assert (back == state) == (said == right)  # undoing tells
            if line["unlike"]:
                seen.caught += 1
                assert line["found"] == back != state == line["unlike"]
                assert (line["again"], line["true"]) == (f"{state} {sign} {n}", right)
                said = right
            else:
                assert line["found"] == state
        else:
            seen.unchecked += 1
        seen.kept += said != right
        seen.steps.append(f"{state} {sign} {n} = {said} .")
        state = said
    seen.answer = state


def _ordering(query: str, tries: list[re.Match[str]], placed: list[re.Match[str]], seen: Audit) -> None:
    clues, place = clues_in(query), numbers(query)[-1]
    older = {younger: elder for elder, younger in clues}
    below = dict(clues)
    first = None
    for line, (candidate, _) in zip(tries, clues, strict=False):  # as the clues stand, until one is the oldest
        assert first is None, query
        assert line["tried"] == candidate
        if line["verdict"] == "no":
            assert line["older"] == older[candidate]  # the clue
            assert not line["check"]
            continue
        assert line["older"] == "none"
        wrong = candidate in older
        seen.slips += wrong
        if line["check"] is None:
            seen.unchecked += 1
        elif line["caught"] == "ok":
            seen.checks += 1
            assert (line["of"], line["than"]) == ("none", candidate)
        else:
            seen.checks += 1
            seen.caught += 1
            assert (line["of"], line["than"]) == (older[candidate], candidate)
            continue
        seen.kept += wrong
        first = candidate
    assert first is not None
    assert len(tries) <= len(clues)
    people = [first]
    for line in placed:
        assert len(people) < place
        before, said = people[-1], line["said"]
        assert line["before"] == before
        assert said in {*older, *below}
        right = below[before]
        seen.slips += said != right
        if line["check"]:
            seen.checks += 1
            assert line["of"] == before
            if line["unlike"]:
                seen.caught += 1
                assert line["unlike"] == said != right
                assert line["found"] == line["true"] == right
                assert line["again"] == before
                said = right
            else:
                assert line["found"] == said
        else:
            seen.unchecked += 1
        seen.kept += said != right
        people.append(said)
    assert len(people) == place or people[-1] not in below  # nobody stops early without need
    seen.steps, seen.answer = [" > ".join(people) + " ."], people[-1]


def _pairs(query: str, lines: list[re.Match[str]], seen: Audit) -> None:
    *listed, target = numbers(query)
    turns, lost, pair = iter(listed), 0, None
    for line in lines:
        assert pair is None, query  # whoever has a pair is done
        if line["lost"] or line["one"]:
            assert next(turns, None) is None  # all were tried
            if line["lost"]:
                lost += 1
                turns = iter(listed)
            else:
                pair = (int(line["one"]), int(line["two"]))
                assert pair[0] != pair[1]
                assert set(pair) <= set(listed)
                seen.kept += sum(pair) != target
            continue
        a = next(turns)
        assert int(line["tried"]) == a
        if line["big"]:
            assert a > target
            assert line["verdict"] == "no"
            continue
        assert (int(line["sum"]), int(line["less"])) == (target, a)
        b = int(line["said"])
        seen.slips += a + b != target
        assert (line["verdict"] == "yes") == (b in listed and b != a)
        if line["verdict"] == "no":
            assert not line["check"]
            continue
        if line["check"]:
            seen.checks += 1
            assert (int(line["a"]), int(line["b"])) == (a, b)
            if line["unlike"]:
                seen.caught += 1
                assert int(line["found"]) == a + b != target == int(line["unlike"])
                continue
            assert int(line["found"]) == target
        else:
            seen.unchecked += 1
        seen.kept += a + b != target
        pair = (a, b)
    assert pair is not None
    assert lost <= 1
    a, b = sorted(pair)
    seen.steps, seen.answer = [f"{a} + {b} = {target} ."], f"{a} and {b}"
