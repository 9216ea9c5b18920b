"""The tests' own parser against answers found by hand: a test that agrees with a wrong parser proves nothing."""

from __future__ import annotations

import pytest
from reading import is_solution, last_stated, queries_in, read

KNOWN = [
    ("on a dial of 31 start with 28 . add 5 . take away 9 . what number is left ?", "arithmetic", "24"),
    ("on a dial of 31 start with 2 . take away 3 . what number is left ?", "arithmetic", "30"),
    ("today is sat . go 5 days back . go 3 days on . which day is it ?", "week", "thu"),
    ("this is dec . go 3 months on . go 6 months back . which month is it ?", "year", "sep"),
    ("face north . turn left 5 times . turn right 2 times . where do you face ?", "compass", "east"),
    ("cid is older than gus . fay is older than cid . who is number 3 ?", "ordering", "gus"),
    ("which two of 15 , 5 , 14 , 11 add up to 26 ?", "pair_sum", "11 and 15"),
]


@pytest.mark.parametrize(("query", "family", "answer"), KNOWN)
def test_known_queries(query, family, answer):
    assert (read(query)[0], read(query)[2]) == (family, answer)
    assert list(queries_in(f"query : {query}\nresponse : {query} and so on")) == [query, query]


def test_known_facts():
    assert read(KNOWN[0][0])[1] == ("28", (("+", 5), ("-", 9)))
    assert read(KNOWN[5][0])[1] == (("fay", "cid", "gus"), (1, 0), 3)
    assert read(KNOWN[6][0])[1] == ((15, 5, 14, 11), 26)


@pytest.mark.parametrize(
    ("query", "right", "wrong"),
    [
        (KNOWN[0][0], "28 + 5 = 2 . 2 - 9 = 24 . answer : 24 .", "28 + 5 = 3 . 3 - 9 = 25 . answer : 24 ."),
        (KNOWN[4][0], "north - 5 = west . west + 2 = east . answer : east .", "west + 2 = east . answer : east ."),
        (KNOWN[5][0], "fay > cid > gus . answer : gus .", "cid > fay > gus . answer : gus ."),
        (KNOWN[6][0], "11 + 15 = 26 . answer : 11 and 15 .", "12 + 14 = 26 . answer : 12 and 14 ."),
    ],
)
def test_known_solutions(query, right, wrong):
    assert is_solution(query, right)
    assert not is_solution(query, wrong)
    assert not is_solution(query, right.replace("answer : ", "answer : 1"))
    assert last_stated(query, right) == read(query)[2]
