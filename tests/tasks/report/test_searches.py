"""The table of searches."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.report.searches import search_rows

SPENT = {"tokens": 1234.5, "solutions": 7.0, "without_a_solution": 1, "corrected": 0, "seconds": 2.0}
FOUND: dict[str, Any] = {"policy": "", "name": "m", "search": {"strategy": "mctsg"}, "answer": "best", "accuracy": None}


@pytest.mark.parametrize(("cut_off", "shown"), [(0.125, "12.5%"), (0.0, "0.0%"), (None, "")])
def test_the_share_of_solutions_that_were_cut_off_is_shown(cut_off: float | None, shown: str) -> None:
    (row,) = search_rows([{**FOUND, **SPENT, "cut_off": cut_off}])
    assert row["cut off"] == shown
