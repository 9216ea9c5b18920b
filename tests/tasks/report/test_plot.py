from __future__ import annotations

import numpy as np
import pytest

from tasks.report import plot


@pytest.mark.filterwarnings("error")
def test_a_run_without_stage_3_has_its_plots() -> None:
    assert b"threshold 1.5" in plot.scores_plot({"scores": np.array([1.0, 2.0, 3.0])}, 1.5)
    assert b"SFT loss" in plot.curves_plot([{"step": 1, "loss": 2.0}], {})
    assert b"samples remaining" in plot.funnel_plot({"sampled": 3}, {})


def test_a_plot_by_steps_has_all_stages() -> None:
    group = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "thought_tokens": 40.0}
    groups = [{"first": 1, "last": 1, **group}, {"first": 2, "last": 4, **group}]
    picture = plot.by_steps_plot([{"name": name, "by_steps": groups} for name in ("instruct", "sft")])
    assert all(f"<!-- {word} -->".encode() in picture for word in ("instruct", "sft", "2 to 4"))
