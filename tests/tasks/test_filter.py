from __future__ import annotations

import pytest

from infra.schemas import RESPONSES
from tasks.filter import filter_responses, reason_to_drop


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"finish_reason": "length"}, "truncated"),
        ({"finish_reason": "length", "violations": ["unclosed_thoughts"]}, "truncated"),
        ({"violations": ["text_after", "text_before"]}, "off format: text_after"),
    ],
)
def test_reasons(response, changes, reason):
    assert reason_to_drop(response(**changes)) == reason


def test_the_step_keeps_order_over_shards_and_counts_every_row(world, response):
    first = [response("a", n, finish_reason="length" if n == 1 else "stop") for n in range(3)]
    second = [response("b", n, violations=["empty_solution"] if n else []) for n in range(3)]
    shards = [world.table(RESPONSES, rows, key=f"k{n}") for n, rows in enumerate((first, second, []))]
    made = world.do(filter_responses, responses=shards)
    assert world.rows(made) == [first[0], first[2], second[0]]
    assert world.counts(made) == {
        "read": 6,
        "kept": 3,
        "dropped: truncated": 1,
        "dropped: off format: empty_solution": 2,
    }


def test_nothing_kept_is_an_empty_table(world, response):
    made = world.do(filter_responses, responses=[world.table(RESPONSES, [response(violations=["text_after"])])])
    assert made.rows == 0
    assert world.counts(made)["read"] == 1
