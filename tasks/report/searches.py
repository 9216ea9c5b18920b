"""Ways of searching side by side: accuracy against the tokens that each sampled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tasks.report.plot import svg

Row = Mapping[str, Any]
Line: TypeAlias = list[tuple[float, float, float, float]]
"""Points: tokens, accuracy, and how far its interval reaches below and above it."""


def search_rows(found: Sequence[Row]) -> list[dict[str, str]]:
    """A row for each search; means per problem."""
    rows = []
    for each in found:
        known = each["accuracy"] is not None
        rows.append(
            {
                **({"policy": each["policy"]} if each["policy"] else {}),
                "search": each["name"],
                "strategy": each["search"]["strategy"],
                "answer": each["answer"],
                "accuracy": f"{each['accuracy']:.3f}" if known else "",
                "95 % interval": f"{each['accuracy_low']:.3f} to {each['accuracy_high']:.3f}" if known else "",
                "tokens": f"{each['tokens']:,.0f}",
                "solutions": f"{each['solutions']:.1f}",
                "without a solution": str(each["without_a_solution"]),
                "cut off": "" if each["cut_off"] is None else f"{each['cut_off']:.1%}",
                "corrected": str(each["corrected"]),
                "seconds in this run": f"{each['seconds']:.1f}",
            }
        )
    return rows


def tokens_plot(found: Sequence[Row]) -> bytes:
    """Accuracy with its 95 % interval over problems against the tokens sampled per problem: a panel for each policy,
    and in it a line for each strategy and answer."""
    panels: defaultdict[str, defaultdict[str, Line]] = defaultdict(lambda: defaultdict(list))
    for each in found:
        accuracy = each["accuracy"]
        point = (each["tokens"], accuracy, accuracy - each["accuracy_low"], each["accuracy_high"] - accuracy)
        panels[each["policy"]][f"{each['search']['strategy']}, {each['answer']}"].append(point)
    return lines_plot(panels)


def lines_plot(panels: Mapping[str, Mapping[str, Line]]) -> bytes:
    """Lines of accuracy against tokens, in a panel for each policy."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for own, (policy, lines) in zip(axes, panels.items(), strict=True):
            for label, line in lines.items():
                tokens, heights, below, above = zip(*sorted(line), strict=True)
                own.errorbar(tokens, heights, yerr=[below, above], marker="o", markersize=3, label=label)
            own.set(xlabel="tokens sampled per problem", xscale="log", title=policy)
        axes[0].set(ylabel="accuracy")
        axes[0].legend(frameon=False, fontsize="small")

    return svg((2.4 + 3.2 * len(panels), 3.8), draw)
