"""The rounds of STILL-2: what each explored, and the lengths of the thoughts before and after the pick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.report.plot import svg

LABELS = ("imitated", "right", "picked")


def round_rows(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each round: problems asked and solved, rollouts, right ones, those left out since they were cut off or
    malformed or could not be verified, and the rows that were learned from."""
    return [
        {
            "round": str(number),
            "problems": f"{each['problems']:,}",
            "solved": f"{each['solved']:,} ({each['solved'] / max(1, each['problems']):.1%})",
            "rollouts": f"{each['rollouts']:,}",
            "right": f"{each['right']:,}",
            **{fate: f"{each.get(f'dropped: {fate}', 0):,}" for fate in ("truncated", "malformed", "not verified")},
            "learned from": f"{each['learned']:,}",
        }
        for number, each in enumerate(rounds, 1)
    ]


def lengths_plot(lengths: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """The distribution of thought tokens by type of problem: imitated, right rollouts, and those picked.

    `lengths`: quantiles from 0 % to 100 % in equal steps, by type and then by label.
    """
    kinds = sorted(lengths)
    columns = min(3, max(1, len(kinds)))
    rows = -(-len(kinds) // columns)

    def draw(figure: Any) -> None:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, kind in zip(panels, kinds, strict=False):
            for label in LABELS:
                if quantiles := lengths[kind].get(label):
                    shares = [100 * n / (len(quantiles) - 1) for n in range(len(quantiles))]
                    axes.plot(quantiles, shares, label=label)
            axes.set(title=kind, xlabel="thought tokens", ylabel="% of responses")
        panels[0].legend(frameon=False)
        for axes in panels[len(kinds) :]:
            axes.set_axis_off()

    return svg((3.6 * columns, 2.8 * rows), draw)
