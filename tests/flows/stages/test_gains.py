"""Which stages are compared with each other."""

from __future__ import annotations

import pandas as pd
import pytest

from flows import evaluate

ACCURACY = {"instruct": 0.0, "in-context": 0.25, "sft": 0.5, "online-1": 0.25, "online-2": 0.75}


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["instruct"], {}),
        (["instruct", "sft"], {("instruct", "sft"): 0.5}),
        (["sft", "online-1"], {("sft", "online-1"): -0.25}),
        (
            ["instruct", "sft", "online-1", "online-2"],
            {
                ("instruct", "sft"): 0.5,
                ("sft", "online-1"): -0.25,
                ("online-1", "online-2"): 0.5,
                ("sft", "online-2"): 0.25,
                ("instruct", "online-2"): 0.75,
            },
        ),
        (
            ["instruct", "in-context", "sft"],
            {("instruct", "in-context"): 0.25, ("in-context", "sft"): 0.25, ("instruct", "sft"): 0.5},
        ),
    ],
)
def test_each_stage_with_the_one_before_it_and_the_ends_with_each_other(stages, expected, monkeypatch):
    def graded(_run: None, stage: str) -> pd.DataFrame:
        right = [n < 4 * ACCURACY[stage] for n in range(4)]
        return pd.DataFrame({"problem_id": ["p", "q", "r", "s"], "sample": 0, "correct": right})

    monkeypatch.setattr(evaluate, "graded_frame", graded)
    found = evaluate.stage_gains(None, {stage: {"sampled": stage} for stage in stages})
    assert {(each["from"], each["to"]): each["gain"] for each in found} == expected
    assert all(each["low"] <= each["gain"] <= each["high"] for each in found)
