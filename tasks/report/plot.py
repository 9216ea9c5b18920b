"""The plots of a run, as SVG. Equal figures give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from infra.training.limits import KL

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
CURVES = {
    "loss": "loss of online training",
    "rewards/accuracies": "chosen preferred (share of pairs)",
    "rewards/margins": "margin of implicit rewards",
    "reward": "mean reward of the samples",
    KL: "KL to pi_0, nats per token",
    "clip_ratio/region_mean": "share of the ratios that are clipped",
}
"""What TRL's trainers log at each step of online training, and its title here: first DPO's, then policy gradients'."""
LOGGED = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "rewards/margins": CURVES["rewards/margins"],
    "rewards/accuracies": CURVES["rewards/accuracies"],
    "reward": CURVES["reward"],
    KL: CURVES[KL],
    "tokens_per_second": "tokens per second",
}
"""What is shown of a training, if its trainer logs it."""


def svg(size: tuple[float, float], draw: Callable[[Any], None]) -> bytes:
    """A figure of `size` inches that `draw` draws on."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A user's name of a topic or model may have a dollar sign, which is no formula.
    plain = {"axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
    with mpl.rc_context({"svg.hashsalt": "bolt", "font.size": 10, **plain}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def stages_plot(stages: list[dict[str, Any]]) -> bytes:
    """Accuracy and mean response length by stage, with 95 % intervals, from summary.json's `stages`."""
    names = [stage["name"] for stage in stages]

    def around(mean: Sequence[float], name: str) -> list[list[float]]:
        low = [middle - stage[f"{name}_low"] for middle, stage in zip(mean, stages, strict=True)]
        return [low, [stage[f"{name}_high"] - middle for middle, stage in zip(mean, stages, strict=True)]]

    def draw(figure: Any) -> None:
        accuracy, length = figure.subplots(1, 2)
        means = [stage["accuracy"] for stage in stages]
        accuracy.errorbar(names, means, yerr=around(means, "accuracy"), fmt="o-", capsize=4, label="sampled")
        accuracy.plot(names, [stage["greedy_accuracy"] for stage in stages], "x--", color="grey", label="greedy")
        accuracy.set(ylim=(0, 1), ylabel="accuracy", title="Held-out problems solved (95 % interval)")
        accuracy.legend(frameon=False)
        thoughts = [stage["thought_tokens"] for stage in stages]
        solutions = [stage["solution_tokens"] for stage in stages]
        totals = [sum(both) for both in zip(thoughts, solutions, strict=True)]
        length.bar(names, thoughts, label="thoughts")
        length.bar(names, solutions, bottom=thoughts, label="solution")
        length.errorbar(names, totals, yerr=around(totals, "tokens"), fmt="none", ecolor="black", capsize=4)
        length.set(ylabel="mean tokens per response", title="Response length (sampled, 95 % interval)")
        length.margins(y=0.25)  # room for the legend
        length.legend(frameon=False, loc="upper left", ncols=2)
        for axes in (accuracy, length):
            axes.tick_params(axis="x", labelrotation=20)

    return svg((10, 3.6), draw)


def by_steps_plot(stages: list[dict[str, Any]]) -> bytes:
    """Accuracy and thoughts' length of each stage against the number of steps of a problem, from their `by_steps`."""
    groups = [range_text(group) for group in stages[0]["by_steps"]]

    def draw(figure: Any) -> None:
        accuracy, length = figure.subplots(1, 2)
        for number, stage in enumerate(stages):
            rows = stage["by_steps"]
            places = [place + 0.04 * (number - len(stages) / 2) for place in range(len(rows))]
            means = [row["accuracy"] for row in rows]
            reach = [
                [mean - row["accuracy_low"] for mean, row in zip(means, rows, strict=True)],
                [row["accuracy_high"] - mean for mean, row in zip(means, rows, strict=True)],
            ]
            accuracy.errorbar(places, means, yerr=reach, fmt="o-", capsize=3, label=stage["name"])
            length.plot(places, [row["thought_tokens"] for row in rows], "o-", label=stage["name"])
        accuracy.set(ylim=(0, 1), ylabel="accuracy", title="Held-out problems solved (95 % interval)")
        length.set(ylabel="mean tokens per response", title="Length of the thoughts", ylim=(0, None))
        length.legend(frameon=False, ncols=2)
        for axes in (accuracy, length):
            axes.set_xticks(range(len(groups)), groups)
            axes.set_xlabel("steps of the problem")

    return svg((10, 3.6), draw)


def range_text(group: Mapping[str, Any]) -> str:
    """A range of numbers of steps, as text."""
    return f"{group['first']}" if group["first"] == group["last"] else f"{group['first']} to {group['last']}"


def funnel_plot(kept: Mapping[str, int], pairs: Mapping[str, Mapping[str, int]]) -> bytes:
    """How many of stage 1's samples remain after each step, and the outcome of each iteration's queries."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        bars = left.barh([*kept], [*kept.values()])
        left.bar_label(bars, fmt="{:,.0f}", padding=3)
        left.margins(x=0.2)
        left.set(title="Stage 1: samples remaining", xlabel="samples")
        outcomes = dict.fromkeys(outcome for counts in pairs.values() for outcome in counts)
        done = np.zeros(len(pairs))
        for outcome in outcomes:
            queries = np.array([counts.get(outcome, 0) for counts in pairs.values()], dtype=float)
            right.barh([*pairs], queries, left=done, label=outcome)
            done += queries
        right.set(title="Stage 3: outcomes of the queries", xlabel="queries")
        if pairs:
            right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=9)
        else:  # no iteration of stage 3
            right.set_axis_off()
        for axes in (left, right):
            axes.invert_yaxis()

    return svg((10, 3.6), draw)


def scores_plot(rewards: Mapping[str, Floats], threshold: float) -> bytes:
    """Histograms of the rewards; the first is stage 1's, with the threshold below which responses are dropped."""

    def draw(figure: Any) -> None:
        first, later = figure.subplots(1, 2)
        (_, scores), *others = rewards.items()
        edges = np.histogram_bin_edges(scores, bins=60)
        first.hist(scores[scores < threshold], bins=edges, color="lightgrey", label="dropped")
        first.hist(scores[scores >= threshold], bins=edges, label="above the threshold")
        first.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
        first.set(title=f"Stage 1: {len(scores):,} rewards", xlabel="reward", ylabel="samples")
        for name, scores in others:
            later.hist(scores, bins=60, density=True, histtype="step", linewidth=1.5, label=name)
        later.set(title="Stage 3: rewards by iteration", xlabel="reward", ylabel="density")
        if not others:  # no iteration of stage 3
            later.set_axis_off()
        for axes in (first, later) if others else (first,):
            axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize=9)

    return svg((10, 3.4), draw)


def histogram_plot(edges: Sequence[float], samples: Sequence[int], threshold: float) -> bytes:
    """A histogram of stage 1's rewards (one edge more than counts) with the threshold for dropping responses."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.stairs(samples, edges, fill=True)
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
        axes.set(title=f"{sum(samples):,} rewards", xlabel="reward", ylabel="samples")
        axes.legend(frameon=False)

    return svg((6, 3.4), draw)


def curves_plot(sft: Sequence[Mapping[str, float]], online: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """The training curves: SFT's loss, and for each iteration the figures of `CURVES` and DPO's implicit rewards.

    `online`: the curve of each iteration, all of them by the same method.
    """
    shown = {name: title for name, title in CURVES.items() if any(name in curve[0] for curve in online.values())}

    def line(axes: Any, curve: Sequence[Mapping[str, float]], name: str, **style: Any) -> Any:
        return axes.plot([at["step"] for at in curve], [at[name] for at in curve], linewidth=1.2, **style)[0]

    def draw(figure: Any) -> None:
        loss, *panels, words = figure.subplots(2, 3).flat
        line(loss, sft, "loss", color="black")
        loss.set(title="SFT loss")
        for step, curve in online.items():
            for axes, (name, title) in zip(panels, shown.items(), strict=False):
                drawn = line(axes, curve, name, label=step)
                axes.set(title=title)
            if "rewards/chosen" in curve[0]:
                line(panels[3], curve, "rewards/chosen", color=drawn.get_color())
                line(panels[3], curve, "rewards/rejected", color=drawn.get_color(), linestyle="--")
                panels[3].set(title="implicit reward: chosen —, rejected - -")
        for axes in (loss, *panels):
            axes.set(xlabel="training step")
        for axes in (words, *([] if online else panels)):
            axes.set_axis_off()
        if online:
            words.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="center", title="iterations")

    return svg((10, 5.4), draw)


def training_plot(name: str, curve: Sequence[Mapping[str, float]]) -> bytes:
    """What the trainer of the step `name` logged at each of its steps: a panel for each figure in `LOGGED`."""
    logged = [figure for figure in LOGGED if any(figure in at for at in curve)]
    rows = max(1, -(-len(logged) // 3))

    def draw(figure: Any) -> None:
        panels = figure.subplots(rows, 3, squeeze=False).flat
        for axes, shown in zip(panels, logged, strict=False):
            points = [(at["step"], at[shown]) for at in curve if shown in at]
            axes.plot(*zip(*points, strict=True), linewidth=1.2, marker="" if len(points) > 1 else "o")
            axes.set(title=LOGGED[shown], xlabel="training step")
        for axes in list(figure.axes)[len(logged) :]:
            axes.set_axis_off()
        figure.suptitle(name)

    return svg((10, 0.4 + 2.5 * rows), draw)


def steps_plot(seconds: Mapping[str, float]) -> bytes:
    """The steps that took at least 1 % of the total time, in seconds, under their names in the store."""
    least = sum(seconds.values()) / 100
    shown = {name: took for name, took in seconds.items() if took >= least}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        bars = axes.barh([*shown], [*shown.values()])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.08, y=0.01)
        axes.set(title="Steps that took at least 1 % of the time", xlabel="seconds to make")

    return svg((10, 1 + 0.24 * len(shown)), draw)
