"""A study's tables: means and intervals over seeds, and differences seed by seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from made_run import MadeRun

from infra.settings import Settings
from infra.store.store import Store
from tasks.report.seeds import interval
from tasks.report.study import (
    by_steps_plot,
    cost_of,
    cost_rows,
    difference_rows,
    own_rows,
    stages_of,
    study_page,
    study_plot,
    table_rows,
)


def row(arm: str, seed: int, stage: str, accuracy: float) -> dict[str, object]:
    plain = {"thought_tokens": 40.0, "solution_tokens": 20.0, "malformed": 0.01}
    group = {"first": 1, "last": 3, "accuracy": accuracy, "thought_tokens": 40.0}
    figures = {"accuracy": accuracy, "greedy_accuracy": accuracy, **plain, "by_steps": [group]}
    return {"arm": arm, "seed": seed, "stage": stage, **figures}


ROWS = [
    row(arm, seed, stage, accuracy + seed / 100)
    for arm, last in (("dpo", 0.6), ("rloo", 0.55))
    for seed in (1, 2, 3)
    for stage, accuracy in (("sft", 0.5), ("online-1", last))
]


def test_the_interval_is_students() -> None:
    low, high = interval([0.51, 0.52, 0.53])
    assert ((low + high) / 2, high - low) == pytest.approx((0.52, 2 * 4.3027 * 0.01 / math.sqrt(3)), abs=1e-5)
    assert all(map(math.isnan, interval([0.5])))
    assert all(map(math.isnan, interval([0.4, 0.9])))  # by Student's t -2.5 to 3.8, of a share


def test_a_table_has_a_row_for_each_arm_and_stage() -> None:
    found = table_rows(ROWS)
    assert [(each["arm"], each["stage"], each["seeds"]) for each in found] == [
        ("dpo", "sft", "3"),
        ("dpo", "online-1", "3"),
        ("rloo", "sft", "3"),
        ("rloo", "online-1", "3"),
    ]
    assert found[0]["accuracy (sampled)"] == "0.520 (0.495 to 0.545)"
    assert table_rows(ROWS[:1])[0]["accuracy (sampled)"] == "0.510"
    two = [each for each in ROWS if each["stage"] == "sft" and each["seed"] < 3]
    assert table_rows(two)[0]["accuracy (sampled)"] == "0.515"


def test_differences_are_taken_seed_by_seed() -> None:
    found = {(each["arm"], each["difference, points"]): each for each in difference_rows(ROWS, "dpo")}
    assert found["dpo", "last stage - sft"]["accuracy (sampled)"] == "10.0 (10.0 to 10.0)"
    assert found["rloo", "last stage - same stage of dpo"]["accuracy (sampled)"] == "-5.0 (-5.0 to -5.0)"
    assert ("dpo", "last stage - same stage of dpo") not in found
    assert ("rloo", "sft - that of dpo") not in found  # it is the same model
    only_sft = [
        each | ({"accuracy": 0.4} if each["arm"] == "rloo" else {})
        for each in ROWS
        if each["stage"] == "sft" or each["arm"] == "dpo"
    ]
    ends = [each["difference, points"] for each in difference_rows(only_sft, "dpo") if each["arm"] == "rloo"]
    assert ends == ["sft - that of dpo"]


COSTS = {"dpo/1": {"sampled": 1000, "trained": 10}, "dpo/2": {"sampled": 3000, "trained": 20}}
STUDY = {"arms": {"dpo": {}, "rloo": {}}, "rows": ROWS, "cells": COSTS, "failed": {"grpo/1": "GuardError: KL | large"}}


def test_a_model_that_arms_share_is_listed_once() -> None:
    assert {(row["arm"], row["stage"]) for row in own_rows(ROWS)} == {
        ("dpo", "sft"),
        ("dpo", "online-1"),
        ("rloo", "online-1"),
    }
    assert len(own_rows(ROWS)) == 9


def test_the_page_names_cells_that_failed_and_the_plot_has_all_arms() -> None:
    page = study_page(STUDY)
    assert "- grpo/1 failed: GuardError: KL" in page
    assert "last stage - same stage of dpo" in page
    assert "| dpo | 2 | 2,000 | 15 |" in page
    picture = study_plot([*ROWS, row("alone", 1, "sft", 0.4)])
    assert all(f"<!-- {arm} -->".encode() in picture for arm in ("dpo", "rloo", "alone", "online-1"))


def test_the_rows_of_a_cell_are_its_stages() -> None:
    stage = {name: value for name, value in ROWS[0].items() if name not in ("arm", "seed", "stage")} | {"name": "sft"}
    assert stages_of({"stages": [stage | {"problems": 3}]}, "dpo", 1) == [ROWS[0]]


def test_what_a_cell_cost_is_in_its_artifacts(tmp_path: Path) -> None:
    store = Store.open(Settings(store=str(tmp_path)))
    run = MadeRun(store)
    cost = cost_of(store, run.summary)
    assert cost == {"sampled": 2 * 90, "trained": 2 * 1200}  # stage 1 and an iteration, SFT and DPO
    assert cost_rows({"a/b/1": cost})[0]["arm"] == "a/b"


def test_a_plot_by_steps_has_all_stages_and_none_without_steps() -> None:
    picture = by_steps_plot(ROWS, "dpo")
    assert picture is not None
    assert all(f"<!-- {word} -->".encode() in picture for word in ("sft", "online-1", "1 to 3"))
    assert by_steps_plot([{**each, "by_steps": []} for each in ROWS], "dpo") is None
