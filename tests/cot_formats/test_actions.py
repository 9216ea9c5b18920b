"""The four reasoning actions, in the nano world's plain words and in sentences of real models."""

import pytest

from cot_formats.actions import ACTIONS, find_actions

NANO = (
    "goal : find what number we end with . plan : go one step at a time . 14 + 7 = 21 . "
    "check : 14 + 7 = 22 , wait , that is wrong . so 21 . alternatively try 8 ."
)


def found(text):
    return [(action.name, text[action.start : action.end]) for action in find_actions(text)]


def test_the_four_names():
    assert ACTIONS == ("analysis", "planning", "branching", "reflection")


def test_the_nano_worlds_words():
    assert found(NANO) == [
        ("analysis", "goal :"),
        ("planning", "plan :"),
        ("planning", "one step at a time"),
        ("reflection", "check"),
        ("reflection", "wait"),
        ("reflection", "that is wrong"),
        ("branching", "alternatively"),
        ("branching", "try"),
    ]
    assert {name for name, _ in found("another way : let me verify")} == {"branching", "reflection"}


@pytest.mark.parametrize(
    ("sentence", "name"),
    [
        ("Okay, so I need to figure out how to measure exactly 60 minutes.", "analysis"),
        ("The question is asking which is heavier.", "analysis"),
        ("Let's first understand the roles.", "analysis"),
        ("Let’s understand the roles.", "analysis"),
        ("First, I'll look at the ropes.", "planning"),
        ("Let's tackle this problem step by step.", "planning"),
        ("My plan is simple.", "planning"),
        ("Let me start by writing the equation.", "planning"),
        ("Alternatively, perhaps the cat could be alive.", "branching"),
        ("Maybe I should consider the other door.", "branching"),
        ("What if the host does not know?", "branching"),
        ("Let me try another approach.", "branching"),
        ("try 14 : too big , no .", "branching"),
        ("try bob : none is older .", "branching"),
        ("goal:find it", "analysis"),
        ("Wait, no. That can't be right.", "reflection"),
        ("Let me double-check the arithmetic.", "reflection"),
        ("Hmm, that doesn't seem right.", "reflection"),
        ("I made a mistake earlier.", "reflection"),
        ("On second thought, door 1 is fine.", "reflection"),
    ],
)
def test_real_phrasing(sentence, name):
    assert name in {found_name for found_name, _ in found(sentence)}


@pytest.mark.parametrize(
    "sentence",
    ["", "The waiter brought a paycheck.", "The sum of 2 and 3 is 5.", "a country of pastry", "await the goalkeeper"],
)
def test_plain_text_has_no_actions(sentence):
    assert found(sentence) == []


def test_trying_to_is_not_branching():
    assert found("Let's try to figure out this riddle.") == [("analysis", "Let's try to figure out")]
