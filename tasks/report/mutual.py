"""The rounds of STILL-1: the reward models' figures, and how well their probabilities agree with what is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.report.plot import svg

Row = dict[str, Any]


def mutual_rows(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each round: what the reward model learned from, how good it is on held-out questions, pairs, and the
    policy's accuracy there."""
    return [
        {
            "round": str(number),
            "solutions learned from": f"{each['chosen']['chosen']:,}",
            "reward model: accuracy": f"{each['held_out']['accuracy']:.3f}",
            "AUROC": "" if each["held_out"]["auroc"] is None else f"{each['held_out']['auroc']:.3f}",
            "AUROC within a question": f"{area:.3f}" if (area := each["held_out"]["auroc_within"]) is not None else "",
            "calibration error": f"{each['held_out']['calibration_error']:.3f}",
            "pairs": f"{each['pairs'].get('kept', 0):,} of {each['pairs']['queries']:,} questions",
            **(searched_cells(each["searched"]) if each["searched"] else {}),
            "policy: held-out accuracy": f"{each['accuracy']:.3f}",
        }
        for number, each in enumerate(rounds, 1)
    ]


def judged_by_topic_rows(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each topic: the AUROC of each round's reward model; empty if the held-out questions have no topics."""
    topics = dict.fromkeys(topic for each in rounds for topic in each["held_out"]["by_topic"])
    return [
        {
            "topic": topic,
            **{
                f"round {number}": f"{area:.3f}"
                if (area := each["held_out"]["by_topic"].get(topic, {}).get("auroc")) is not None
                else ""
                for number, each in enumerate(rounds, 1)
            },
        }
        for topic in topics
    ]


def searched_cells(counts: Mapping[str, int]) -> dict[str, str]:
    """What a round's search for training data found."""
    return {
        "solutions found by search": f"{counts['solutions']:,}",
        "tokens sampled by search": f"{counts['completion_tokens']:,}",
    }


def calibration_plot(rounds: Mapping[str, Sequence[Row]]) -> bytes:
    """The share of right solutions against the probability that a reward model gives them, by round.

    `rounds`: the rows of each round's table `calibration`, by label.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfect")
        for label, rows in rounds.items():
            shown = [row["probability"] for row in rows], [row["right"] for row in rows]
            axes.plot(*shown, marker="o", markersize=3, label=label)
        axes.set(xlabel="probability of being right", ylabel="share of right solutions", xlim=(0, 1), ylim=(0, 1))
        axes.legend(frameon=False)

    return svg((4.2, 3.6), draw)
