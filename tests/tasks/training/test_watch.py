"""How far a training is, as its bar shows it: from whole lines only, and from the step that it was resumed at."""

from __future__ import annotations

import math
from pathlib import Path

from tasks.training.watch import last_figures, steps_done, steps_in_all

BEGUN = '{"step": 40, "steps": 120}\n'


def test_a_training_is_as_far_as_its_last_whole_line(tmp_path: Path) -> None:
    metrics = tmp_path / "train.metrics.jsonl"
    assert (steps_done(metrics), steps_in_all(metrics), last_figures(metrics)) == (0, math.inf, "")
    metrics.write_text(BEGUN[:-5])
    assert steps_in_all(metrics) == math.inf
    metrics.write_text(BEGUN)  # it goes on from step 40
    assert (steps_done(metrics), steps_in_all(metrics), last_figures(metrics)) == (40, 120, "")
    line = '{"step": 41, "loss": 0.5123, "tokens_per_second": 5800.4}\n'
    metrics.write_text(BEGUN + line + '{"step": 42, "lo')
    assert (steps_done(metrics), steps_in_all(metrics)) == (41, 120)
    assert last_figures(metrics) == "loss 0.512, 5,800 tokens per second"
    metrics.write_text(BEGUN + line + '{"step": 41, "train_runtime": 9.5}\n')  # the last line of all has totals
    assert last_figures(metrics) == "loss 0.512, 5,800 tokens per second"
