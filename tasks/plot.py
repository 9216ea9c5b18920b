"""The picture of a run: accuracy with its interval and mean response length along the stages."""

from __future__ import annotations

import io
from typing import Any


def stages_plot(stages: list[dict[str, Any]]) -> bytes:
    """An SVG of summary.json's `stages`. The same stages give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "bolt", "font.size": 10}):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        accuracy, length = figure.subplots(1, 2)
        names = [stage["name"] for stage in stages]
        means = [stage["accuracy"] for stage in stages]
        low = [stage["accuracy"] - stage["accuracy_low"] for stage in stages]
        high = [stage["accuracy_high"] - stage["accuracy"] for stage in stages]
        accuracy.errorbar(names, means, yerr=[low, high], fmt="o-", capsize=4, label="T=1")
        accuracy.plot(names, [stage["greedy_accuracy"] for stage in stages], "x--", color="grey", label="greedy")
        accuracy.set(ylim=(0, 1), ylabel="accuracy", title="Held-out problems solved (95 % interval)")
        accuracy.legend(frameon=False)
        thoughts = [stage["thought_tokens"] for stage in stages]
        length.bar(names, thoughts, label="thoughts")
        length.bar(names, [stage["solution_tokens"] for stage in stages], bottom=thoughts, label="solution")
        length.set(ylabel="mean tokens a response", title="Response length (T=1)")
        length.legend(frameon=False)
        for axes in (accuracy, length):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="x", labelrotation=20)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
