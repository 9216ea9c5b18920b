"""STILL-1 over seeds: how good the reward models are, and the accuracy of each search with each policy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from infra.text.markdown import as_text, markdown_table
from tasks.report.searches import Line, lines_plot
from tasks.report.seeds import grouped, interval_reach, spread

Row = dict[str, Any]


def searches_of(summary: Mapping[str, Any], arm: str, seed: int) -> list[Row]:
    """A row for each policy, search and vote of a cell."""
    shown = ("policy", "name", "answer", "tokens", "solutions", "seconds", "accuracy")
    return [
        {
            "arm": arm,
            "seed": seed,
            "strategy": each["search"]["strategy"],
            "budget": each["search"]["tokens"],
            **{name: each[name] for name in shown},
        }
        for each in summary["searches"]
    ]


def judges_of(summary: Mapping[str, Any], arm: str, seed: int) -> list[Row]:
    """A row for each round's reward model of a cell, with its figures on held-out questions."""
    return [
        {"arm": arm, "seed": seed, "round": number, **each["held_out"]}
        for number, each in enumerate(summary["rounds"], 1)
    ]


def judge_rows(judges: Sequence[Row]) -> list[dict[str, str]]:
    """A row for each arm and round: the reward model's figures on held-out questions, and its AUROC by topic."""
    topics = dict.fromkeys(topic for row in judges for topic in row["by_topic"])
    made = []
    for (arm, number), found in grouped(judges, "arm", "round").items():
        shown = {"arm": arm, "round": str(number), "seeds": str(len(found))}
        titles = {
            "accuracy": "accuracy",
            "auroc": "AUROC",
            "auroc_within": "AUROC within a question",
            "calibration_error": "calibration error",
        }
        for name, title in titles.items():
            values = [row[name] for row in found if row[name] is not None]
            shown[title] = spread(values) if values else ""
        for topic in topics:
            areas = [row["by_topic"].get(topic, {}).get("auroc") for row in found]
            known = [area for area in areas if area is not None]
            shown[f"AUROC, {as_text(topic)}"] = f"{statistics.fmean(known):.3f}" if known else ""
        made.append(shown)
    return made


def accuracy_rows(searches: Sequence[Row]) -> list[dict[str, str]]:
    """A row for each search and vote: its accuracy with each policy, and what it costs a problem with the last one."""
    policies = list(dict.fromkeys(row["policy"] for row in searches))
    made = []
    for (name, answer), found in grouped(searches, "name", "answer").items():
        own = grouped(found, "policy")
        last = own[(policies[-1],)]
        made.append(
            {
                "search": name,
                "answer": answer,
                **{
                    policy: spread([row["accuracy"] for row in own[(policy,)]]) if (policy,) in own else ""
                    for policy in policies
                },
                "tokens": f"{mean_of(last, 'tokens'):,.0f}",
                "seconds": f"{mean_of(last, 'seconds'):,.1f}",
            }
        )
    return made


COMPARED = {
    "mctsg - mcts": (("mctsg", "weighted"), ("mcts", "weighted")),
    "mctsg - best of n": (("mctsg", "weighted"), ("sampling", "best")),
    "mctsg - weighted vote": (("mctsg", "weighted"), ("sampling", "weighted")),
    "mctsg - majority vote": (("mctsg", "weighted"), ("sampling", "majority")),
    "best of n - majority vote": (("sampling", "best"), ("sampling", "majority")),
}
"""Searches that are compared at equal budgets, by strategy and vote."""


def difference_rows(searches: Sequence[Row]) -> list[dict[str, str]]:
    """Differences in accuracy in points between searches of the same budget, of each policy seed by seed, and the mean
    over policies. A policy that a seed lacks, because its rounds ended early, is left out."""
    found = {
        (row["seed"], row["policy"], row["budget"], row["strategy"], row["answer"]): row["accuracy"] for row in searches
    }
    seeds = list(dict.fromkeys(row["seed"] for row in searches))
    made = []
    for budget in sorted({row["budget"] for row in searches}):
        for title, (one, two) in COMPARED.items():
            gains: dict[str, list[float]] = {}
            for policy in dict.fromkeys(row["policy"] for row in searches):
                both = [((seed, policy, budget, *one), (seed, policy, budget, *two)) for seed in seeds]
                if all(a in found and b in found for a, b in both):
                    gains[policy] = [found[a] - found[b] for a, b in both]
            if not gains:
                continue
            shown = {"tokens": f"{budget:,}", "difference, points": title}
            shown |= {policy: spread(each, 100, 1) for policy, each in gains.items()}
            made.append({**shown, "all": spread([*map(statistics.fmean, zip(*gains.values(), strict=True))], 100, 1)})
    return made


def mutual_tables(study: Mapping[str, Any]) -> list[str]:
    """The tables of reward models and searches as Markdown, each after a sentence; none for other methods."""
    parts = []
    if judges := study.get("judges"):
        parts += ["Reward models on held-out questions, each round.", markdown_table(judge_rows(judges))]
    for (arm,), found in grouped(study.get("searches", ()), "arm").items():
        if any(row["accuracy"] is None for row in found):
            continue
        parts += [
            f"Accuracy of searches in arm `{arm}`, by policy. Tokens (per problem) and seconds (for all problems, in "
            "the run) are those of the last policy.",
            markdown_table(accuracy_rows(found)),
        ]
        if differences := difference_rows(found):
            parts += [f"Differences in arm `{arm}`, paired by seed.", markdown_table(differences)]
    return parts


def searches_plot(searches: Sequence[Row], arm: str) -> bytes | None:
    """Accuracy against the tokens sampled per problem in an arm: a panel for each policy, a line for each strategy and
    vote, means over seeds with 95 % intervals. None without graded searches."""
    own = [row for row in searches if row["arm"] == arm and row["accuracy"] is not None]
    if not own:
        return None
    panels: dict[str, dict[str, Line]] = {}
    for (policy,), found in grouped(own, "policy").items():
        panels[policy] = {}
        for (strategy, answer), line in grouped(found, "strategy", "answer").items():
            points: Line = []
            for rows in grouped(line, "name").values():
                reach = interval_reach([row["accuracy"] for row in rows])
                points.append((mean_of(rows, "tokens"), mean_of(rows, "accuracy"), reach, reach))
            panels[policy][f"{strategy}, {answer}"] = points
    return lines_plot(panels)


def mean_of(rows: Sequence[Row], name: str) -> float:
    """The mean of a figure over rows."""
    return statistics.fmean(row[name] for row in rows)
