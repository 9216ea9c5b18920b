"""The tests' own reader, by hand: a test that agrees with a wrong reader proves nothing."""

from __future__ import annotations

import pytest
from reading import is_solution, last_stated, queries_in, read

KNOWN = [
    ("on a dial of 21 start with 18 . first add 5 . second take away 6 . what number is left ?", "arithmetic", "17"),
    ("on a dial of 21 start with 2 . first take away 3 . what number is left ?", "arithmetic", "20"),
    ("today is sat . first go 5 days back . second go 3 days on . which day is it ?", "week", "thu"),
    ("this is dec . first go 3 months on . second go 6 months back . which month is it ?", "year", "sep"),
    ("face north . first turn left 5 times . second turn right 2 times . where do you face ?", "compass", "east"),
    ("cid is older than gus . fay is older than cid . who is number 3 ?", "ordering", "gus"),
    ("which two of 12 , 5 , 9 , 11 add up to 23 ?", "pair_sum", "11 and 12"),
]


@pytest.mark.parametrize(("query", "family", "answer"), KNOWN)
def test_known_queries(query, family, answer):
    assert (read(query)[0], read(query)[2]) == (family, answer)
    assert list(queries_in(f"query : {query}\nresponse : {query} and so on")) == [query, query]


def test_known_facts():
    assert read(KNOWN[0][0])[1] == ("18", (("+", 5), ("-", 6)))
    assert read(KNOWN[5][0])[1] == (("fay", "cid", "gus"), (1, 0), 3)
    assert read(KNOWN[6][0])[1] == ((12, 5, 9, 11), 23)


@pytest.mark.parametrize(
    ("query", "right", "wrong"),
    [
        (KNOWN[0][0], "18 + 5 = 2 . 2 - 6 = 17 . answer : 17 .", "18 + 5 = 3 . 3 - 6 = 18 . answer : 17 ."),
        (KNOWN[4][0], "north - 5 = west . west + 2 = east . answer : east .", "west + 2 = east . answer : east ."),
        (KNOWN[5][0], "fay > cid > gus . answer : gus .", "cid > fay > gus . answer : gus ."),
        (KNOWN[6][0], "11 + 12 = 23 . answer : 11 and 12 .", "10 + 13 = 23 . answer : 10 and 13 ."),
    ],
)
def test_known_solutions(query, right, wrong):
    assert is_solution(query, right)
    assert not is_solution(query, wrong)
    assert not is_solution(query, right.replace("answer : ", "answer : 1"))
    assert last_stated(query, right) == read(query)[2]
