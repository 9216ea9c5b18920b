"""The tests' own auditor, by hand: an auditor that lets anything pass proves nothing."""

from __future__ import annotations

import pytest
from auditing import audit, parted

WEEK = "today is thu . first go 2 days back . second go 3 days on . which day is it ?"
WEEK_HEAD = "goal : find the day . plan : one step at a time ."
CAREFUL = (
    f"{WEEK_HEAD} first go 2 days back : thu - 2 = tue . check tue + 2 = thu ok . "
    "second go 3 days on : tue + 3 = sat . check sat - 3 = wed , wait , not tue . tue + 3 = fri ."
)
WEEK_SOLUTION = "thu - 2 = tue . tue + 3 = fri . answer : fri ."

AGES = "bob is older than cid . ann is older than bob . who is number 3 ?"
AGES_HEAD = "goal : find number 3 . plan : find the oldest , then go down ."
PLACED = (
    f"{AGES_HEAD} try bob : none is older , yes . check ann is older than bob , wait , no . "
    "try ann : none is older , yes . check none is older than ann ok . ann > cid . "
    "check ann is older than bob , wait , not cid . ann > bob . bob > cid . check bob is older than cid ok ."
)
AGES_SOLUTION = "ann > bob > cid . answer : cid ."

SUM = "which two of 12 , 5 , 9 , 3 add up to 12 ?"
SUM_HEAD = "goal : two that add up to 12 . plan : try each in turn ."
PAIRED = (
    f"{SUM_HEAD} try 12 : 12 - 12 = 0 , no . try 5 : 12 - 5 = 9 , yes . check 5 + 9 = 14 , wait , not 12 . "
    "try 9 : 12 - 9 = 4 , no . try 3 : 12 - 3 = 8 , no . none left , wait , one was missed . again . "
    "try 12 : 12 - 12 = 0 , no . try 5 : 12 - 5 = 7 , no . try 9 : 12 - 9 = 3 , yes . check 9 + 3 = 12 ok ."
)
SUM_SOLUTION = "3 + 9 = 12 . answer : 3 and 9 ."

GOOD = [(WEEK, CAREFUL, WEEK_SOLUTION), (AGES, PLACED, AGES_SOLUTION), (SUM, PAIRED, SUM_SOLUTION)]


@pytest.mark.parametrize(
    ("given", "counts"), [(GOOD[0], (2, 0, 1, 1, 0)), (GOOD[1], (4, 0, 2, 2, 0)), (GOOD[2], (2, 0, 3, 1, 0))]
)
def test_what_holds_passes_and_is_counted(given, counts):
    seen = audit(*given)
    assert (seen.checks, seen.unchecked, seen.slips, seen.caught, seen.kept) == counts
    assert f"answer : {seen.answer} ." in given[2]


@pytest.mark.parametrize("given", GOOD)
def test_thoughts_and_solution_are_told_apart(given):
    query, thoughts, solution = given
    assert parted(query, f"{thoughts} {solution}") == (thoughts, solution)


def test_what_a_careless_writer_leaves_is_counted():
    thoughts = f"{WEEK_HEAD} first go 2 days back : thu - 2 = mon . second go 3 days on : mon + 3 = thu ."
    seen = audit(WEEK, thoughts, "thu - 2 = mon . mon + 3 = thu . answer : thu .")
    assert (seen.checks, seen.unchecked, seen.slips, seen.caught, seen.kept) == (0, 2, 1, 0, 1)
    missed = thoughts.replace("= mon .", "= mon . check mon + 2 = thu ok .") + " check thu - 3 = mon ok ."
    seen = audit(WEEK, missed, "thu - 2 = mon . mon + 3 = thu . answer : thu .")
    assert (seen.checks, seen.unchecked, seen.slips, seen.caught, seen.kept) == (2, 0, 1, 0, 1)
    seen = audit(AGES, f"{AGES_HEAD} try bob : none is older , yes . bob > cid .", "bob > cid . answer : cid .")
    assert (seen.slips, seen.kept) == (1, 1)
    tried = " ".join(f"try {a} : 12 - {a} = {b} , no ." for a, b in ((12, 0), (5, 7), (9, 4), (3, 8)))
    seen = audit(SUM, f"{SUM_HEAD} {tried} none left . guess 9 and 5 .", "5 + 9 = 12 . answer : 5 and 9 .")
    assert (seen.slips, seen.caught, seen.kept) == (2, 0, 1)


@pytest.mark.parametrize(
    ("at", "there", "instead"),
    [
        (0, "first go 2 days back :", "first go 2 days on :"),  # not the query's words
        (0, "second go 3 days on :", "third go 3 days on :"),
        (0, "find the day", "find the month"),
        (0, "thu - 2 = tue . check", "thu - 2 = mon . check"),  # checks what was not said
        (0, "check tue + 2 = thu ok", "check tue - 2 = thu ok"),  # does not undo
        (0, "check tue + 2 = thu ok", "check tue + 3 = thu ok"),
        (0, "check tue + 2 = thu ok", "check thu - 2 = tue ok"),  # copies the step
        (0, "check tue + 2 = thu ok", "check tue + 2 = wed ok"),  # ok though it differs
        (
            0,
            "check tue + 2 = thu ok .",
            "check tue + 2 = thu , wait , not thu . thu - 2 = tue .",
        ),  # wait though it agrees
        (0, "check sat - 3 = wed", "check sat - 3 = mon"),  # undone wrongly
        (0, "wait , not tue", "wait , not sat"),
        (0, "tue + 3 = fri .", "tue + 3 = sat ."),  # a redo that is false
        (0, "tue + 3 = fri .", "wed + 3 = sat ."),
        (0, "check tue + 2 = thu ok .", "check tue + 2 = thu ok . fri ."),  # a line of no known kind
        (1, "try bob : none is older", "try cid : none is older"),  # not in the clues' order
        (
            1,
            "try bob : none is older , yes . check ann is older than bob , wait , no .",
            "try bob : cid is older , no .",
        ),
        (1, "check ann is older than bob , wait , no", "check cid is older than bob , wait , no"),
        (1, "check none is older than ann ok", "check none is older than bob ok"),
        (1, "check none is older than ann ok .", "check cid is older than ann , wait , no ."),
        (1, "check ann is older than bob , wait , not cid", "check ann is older than bob , wait , not bob"),
        (
            1,
            "check ann is older than bob , wait , not cid . ann > bob",
            "check ann is older than bob , wait , not cid . ann > cid",
        ),
        (1, "check bob is older than cid ok", "check bob is older than ann ok"),
        (1, "bob > cid . check bob", "ann > cid . check bob"),
        (2, "try 5 : 12 - 5 = 9 , yes", "try 5 : 12 - 5 = 8 , yes"),  # 8 is not there
        (2, "try 12 : 12 - 12 = 0 , no . try 5 : 12 - 5 = 9", "try 12 : too big , no . try 5 : 12 - 5 = 9"),
        (2, "check 5 + 9 = 14", "check 5 + 9 = 13"),
        (2, "check 5 + 9 = 14 , wait , not 12 .", "check 5 + 9 = 12 ok ."),
        (2, "check 9 + 3 = 12 ok", "check 9 + 5 = 12 ok"),
        (2, "try 9 : 12 - 9 = 4 , no . try 3 : 12 - 3 = 8 , no .", "try 9 : 12 - 9 = 4 , no ."),  # one left out
    ],
)
def test_what_does_not_hold_is_refused(at, there, instead):
    query, thoughts, solution = GOOD[at]
    assert there in thoughts
    with pytest.raises((AssertionError, ValueError, KeyError)):
        audit(query, thoughts.replace(there, instead, 1), solution)


@pytest.mark.parametrize("given", GOOD)
def test_a_solution_that_is_not_what_the_thoughts_came_to_is_refused(given):
    query, thoughts, solution = given
    *_, answer, _ = solution.split()
    with pytest.raises(AssertionError):
        audit(query, thoughts, solution.replace(f"{answer} .", "1 ."))
    with pytest.raises((AssertionError, ValueError)):
        audit(query, " ".join(thoughts.split()[:-12]), solution)
