"""Texts that are degenerate take no longer than others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cot_formats.steps import Steps
from tasks.imitation.sources import own_part
from tasks.queries.overlap import words
from tasks.responses.rules import repeated_share

READ: dict[str, Callable[[str], Any]] = {
    "words": lambda text: repeated_share(words(text), 20),
    "thoughts": lambda text: own_part(f"I think{text}more </think>\nanswer", "thoughts"),
    "steps": Steps().parse,
}


@pytest.mark.parametrize("unit", ["\n", "\n\n", " ", "\u0315\u0323", "字", "ำ", "word ", "</think>", "a\n"])
@pytest.mark.parametrize("read", READ)
def test_time_is_linear_in_the_length(read: str, unit: str) -> None:
    """Eight times the text takes about eight times as long; quadratic work would take sixty-four times."""

    def seconds(size: int) -> float:
        text = f"a{unit * (size // len(unit))}b"
        found = []
        for _ in range(3):
            began = time.process_time()
            READ[read](text)
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(160_000) < 25 * seconds(20_000) + 0.05
