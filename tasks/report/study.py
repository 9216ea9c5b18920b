"""A study's figures over seeds: means with 95 % intervals, differences between variants seed by seed, and curves."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from infra.store.store import Store
from infra.text.markdown import as_text, markdown_table
from tasks.report import report
from tasks.report.mutual_study import mutual_tables
from tasks.report.plot import range_text, svg
from tasks.report.seeds import grouped, interval_reach, spread

Row: TypeAlias = dict[str, Any]
FIGURES = {
    "accuracy": "accuracy (sampled)",
    "greedy_accuracy": "greedy",
    "thought_tokens": "thought tokens",
    "solution_tokens": "solution tokens",
    "malformed": "malformed",
}
"""The figures of a stage in summary.json, and their titles here."""
FIRST = ("sft", "imitated", "adapted")
"""The stage after the first training, of `bolt`, `still2` and `still1`."""


def stages_of(summary: Mapping[str, Any], arm: str, seed: int) -> list[Row]:
    """The figures of each stage of a cell, a row each."""
    shown = (*FIGURES, "by_steps")
    return [
        {"arm": arm, "seed": seed, "stage": stage["name"], **{name: stage[name] for name in shown}}
        for stage in summary["stages"]
    ]


def cost_of(store: Store, summary: Mapping[str, Any]) -> dict[str, int]:
    """What a cell cost, the steps that it shares with others included; evaluation and its searches are left out.

    Returns the numbers of tokens `sampled` for training data and `trained` on (in all epochs).

    Raises:
        BadArtifact: an artifact of the run is missing or damaged.
    """
    made = report.manifests(store, report.made_by(store, summary))
    counts = [
        each.counts for step, shards in made.items() if not step.startswith(("answers", "search-")) for each in shards
    ]
    names = {"sampled": "completion_tokens", "trained": "tokens_seen"}
    return {kind: sum(each.get(name) or 0 for each in counts) for kind, name in names.items()}


def own_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows without those of a model that an earlier arm has evaluated: arms share models."""
    seen: set[tuple[Any, ...]] = set()
    own = []
    for row in rows:
        model = (row["seed"], row["stage"], *(row[name] for name in FIGURES))
        own += [row] if (model not in seen) else []
        seen.add(model)
    return own


def table_rows(rows: Iterable[Row]) -> list[dict[str, str]]:
    """A row for each arm and stage: means over seeds with 95 % intervals."""
    made = []
    for (arm, stage), found in grouped(rows, "arm", "stage").items():
        shown = {"arm": arm, "stage": stage, "seeds": str(len(found))}
        for name, title in FIGURES.items():
            values = [row[name] for row in found]
            shown[title] = spread(values) if "accuracy" in name else f"{statistics.fmean(values):.3g}"
        made.append(shown)
    return made


def last_stages(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """The last stage's row of each arm, by seed."""
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        found[row["arm"]][row["seed"]] = row  # the last one stays
    return found


def difference_rows(rows: Sequence[Row], first: str) -> list[dict[str, str]]:
    """Differences in accuracy in points, seed by seed.

    They are those of each arm's last stage from its first training (`FIRST`), and of both from the same stages of the
    arm `first`. Only the first training is compared of an arm that ends with it.
    """
    base = next((row["stage"] for row in rows if row["stage"] in FIRST), FIRST[0])
    last = last_stages(rows)
    bases = {(row["arm"], row["seed"]): row for row in rows if row["stage"] == base}
    firsts = {(row["stage"], row["seed"]): row for row in rows if row["arm"] == first}
    made = []
    for arm, found in last.items():
        later = {seed: row for seed, row in found.items() if row["stage"] != base}
        pairs = {
            f"last stage - {base}": [(row, bases[arm, seed]) for seed, row in later.items() if (arm, seed) in bases],
            f"{base} - that of {first}": [
                (bases[arm, seed], bases[first, seed]) for seed in found if {(arm, seed), (first, seed)} <= bases.keys()
            ],
            f"last stage - same stage of {first}": [
                (row, firsts[row["stage"], seed]) for seed, row in later.items() if (row["stage"], seed) in firsts
            ],
        }
        for what, both in pairs.items():
            same_model = all(a[name] == b[name] for a, b in both for name in FIGURES)
            if both and not (same_model and what.endswith(first)):
                shown = {"arm": arm, "difference, points": what, "seeds": str(len(both))}
                for name, title in list(FIGURES.items())[:2]:
                    shown[title] = spread([a[name] - b[name] for a, b in both], 100, 1)
                made.append(shown)
    return made


def cost_rows(cells: Mapping[str, Mapping[str, int]]) -> list[dict[str, str]]:
    """A row for each arm: what its cells, named ARM/SEED, cost on average."""
    found: dict[str, list[Mapping[str, int]]] = defaultdict(list)
    for cell, cost in cells.items():
        found[cell.rpartition("/")[0]].append(cost)
    return [
        {"arm": arm, "seeds": str(len(costs))}
        | {
            f"tokens {kind}": f"{statistics.fmean(cost[kind] for cost in costs):,.0f}"
            for kind in ("sampled", "trained")
        }
        for arm, costs in found.items()
    ]


def study_page(study: Mapping[str, Any]) -> str:
    """The tables of a study as Markdown. Intervals are over seeds."""
    rows = study["rows"]
    parts = [
        "Means over seeds, with 95 % intervals for several seeds. A model that several arms share is listed once.",
        markdown_table(table_rows(own_rows(rows))),
    ]
    if differences := difference_rows(rows, next(iter(study["arms"]))):
        parts += ["Mean differences in percentage points, paired by seed.", markdown_table(differences)]
    parts += mutual_tables(study)
    parts += [
        "Tokens sampled for training data and trained on, in all epochs.",
        markdown_table(cost_rows(study["cells"])),
    ]
    failed: Mapping[str, str] = study["failed"]
    if failed:
        parts.append("\n".join(f"- {as_text(cell)} failed: {as_text(reason)}" for cell, reason in failed.items()))
    return "\n\n".join(parts) + "\n"


def by_steps_plot(rows: Sequence[Row], arm: str) -> bytes | None:
    """Accuracy and thoughts' length of an arm's stages against the number of steps of a problem, means over seeds.

    None if the problems do not state their numbers of steps.
    """
    found = {
        stage: held
        for (name, stage), held in grouped(rows, "arm", "stage").items()
        if name == arm and held[0]["by_steps"]
    }
    if not found:
        return None
    groups = [range_text(group) for group in next(iter(found.values()))[0]["by_steps"]]

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 2)
        for axes, name in zip(panels, ("accuracy", "thought_tokens"), strict=True):
            for number, (stage, held) in enumerate(found.items()):
                seeds = [[group[name] for group in row["by_steps"]] for row in held]
                curve(axes, [*zip(*seeds, strict=True)], 0.04 * (number - len(found) / 2), stage)
            axes.set_xticks(range(len(groups)), groups)
            axes.set(title=FIGURES[name], xlabel="steps of the problem", ylim=(0, None))
        panels[0].legend(frameon=False)

    return svg((11, 4), draw)


def curve(axes: Any, values: Sequence[Sequence[float]], shift: float, label: str, at: Sequence[int] = ()) -> None:
    """Draw means over seeds with their 95 % intervals, at places 0, 1, ... or `at`, moved to the right by `shift`."""
    means = [statistics.fmean(each) for each in values]
    reach = [interval_reach(each) for each in values]
    places = [place + shift for place in (at or range(len(values)))]
    axes.errorbar(places, means, yerr=reach, fmt="o-", capsize=3, label=label)


def study_plot(rows: Sequence[Row]) -> bytes:
    """Accuracy and thoughts' length along the stages, a curve for each arm, with 95 % intervals over seeds."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    found = grouped(rows, "arm", "stage")

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 2)
        for axes, name in zip(panels, ("accuracy", "thought_tokens"), strict=True):
            for number, arm in enumerate(arms):
                shown = [stage for stage in stages if (arm, stage) in found]
                values = [[row[name] for row in found[arm, stage]] for stage in shown]
                at = [stages.index(stage) for stage in shown]
                curve(axes, values, 0.04 * (number - len(arms) / 2), arm, at)
            axes.set_xticks(range(len(stages)), stages, rotation=20)
            axes.set(title=FIGURES[name])
        panels[0].legend(frameon=False)

    return svg((11, 4), draw)
