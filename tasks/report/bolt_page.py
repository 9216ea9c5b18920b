"""What the report of a run of `bolt` shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from infra.store.manifest import Manifest
from infra.store.store import Store
from infra.training.config import METHODS
from tasks.report import plot, report
from tasks.report.guards import guard_rows
from tasks.report.reader import training_items
from tasks.report.report import Content, Found, Made, Rows, common_content, curve, numbered
from tasks.rewards.group import NO_SIGNAL
from tasks.rewards.select import rewards

CAPTIONS = {
    "funnel": "Counts of each step; shares are relative to the step's first count",
    "guards": "How far each policy of stage 3 is from pi_0; a figure over its limit stops the run (docs/operations.md)",
}
TITLES = {
    "funnel": "Samples of stage 1 that remain after each step, and outcomes of each iteration's queries",
    "scores": "Histograms of the rewards: stage 1 with its threshold, and each iteration",
    "curves": "SFT loss; what the trainer of each iteration of stage 3 logged",
}


def bolt_content(
    store: Store, summary: Mapping[str, Any], max_answers: int = 20_000, max_queries: int = 100
) -> Content:
    """What the report of a run shows.

    Args:
        summary: a run's summary.json.
        max_answers: most held-out answers in the reader, of all stages together; the first problems are shown.
        max_queries: most queries of each training table in the reader.

    Raises:
        BadArtifact: an artifact of the run is missing or damaged.
    """
    made = report.made_by(store, summary)
    found = report.manifests(store, made)
    given = {"title": "BOLT", "template": "bolt.html"}
    content = common_content(store, summary, made, found, trained=trainings(found), max_answers=max_answers, **given)
    content.tables.update(funnel=funnel_rows(found), guards=guard_rows(summary["guards"]))
    content.captions.update(CAPTIONS)
    content.plots.update(plots(store, made, found))
    content.titles.update(TITLES)
    for step in ["responses", *numbered(made, "responses-online-")]:
        stage = step.removeprefix("responses-") if step != "responses" else "stage 1"
        content.sets[f"training samples, {stage}"] = training_items(store, made, step, max_queries)
    return content


def trainings(made: Iterable[str]) -> list[str]:
    """The names of the steps that trained a model, in order."""
    return [*(name for name in made if name == "sft"), *iterations(made)]


def iterations(made: Iterable[str]) -> list[str]:
    """The names of the steps that trained a policy online, in order; a run uses one method."""
    return [step for method in METHODS for step in numbered(made, f"{method}-")]


def funnel_rows(found: Found) -> Rows:
    """The table of counts of each filtering step, from its manifest, with shares of the step's first count."""
    rows = []
    for step in ["filtered", "scores", "longcot", *numbered(found, "pairs-"), *numbered(found, "samples-")]:
        counts = added(found[step])
        whole = next(iter(counts.values()))
        for name, count in counts.items():
            rows.append(
                {"step": step, "counted": name, "rows": count, "share": f"{count / whole:.1%}" if whole else ""}
            )
    return rows


def added(shards: Iterable[Manifest]) -> Counter[str]:
    """The counts of a step, added up over its shards."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update({name: count for name, count in shard.counts.items() if isinstance(count, int)})
    return counts


def plots(store: Store, made: Made, found: Found) -> dict[str, bytes]:
    """The plots of BOLT's data and trainings, as SVG."""
    filtered = added(found["filtered"])
    scored, selected = (found[step][0].counts for step in ("scores", "longcot"))
    remaining = {
        "sampled": filtered["read"],
        "passed the rules": filtered["kept"],
        "scored": scored["scored"],
        "above the threshold": scored["scored"] - selected["below the percentile"],
        "best of their query": selected["kept"],
    }
    outcomes: dict[str, dict[str, int]] = defaultdict(dict)
    for step in numbered(found, "pairs-"):
        counts = found[step][0].counts
        outcomes[step] = {
            name: counts[name] for name in sorted(counts, reverse=True) if name.startswith(("kept", "dropped"))
        }
    for step in numbered(found, "samples-"):
        counts = found[step][0].counts
        outcomes[step] = {NO_SIGNAL: counts[NO_SIGNAL], "trained on": counts["queries"] - counts[NO_SIGNAL]}
    scored_steps = ["scores", *numbered(made, "scores-online-")]
    scores = {step.removeprefix("scores-"): rewards(store, made[step][0]) for step in scored_steps}
    online = {step: curve(found[step][0]) for step in iterations(found)}
    return {
        "funnel": plot.funnel_plot(remaining, outcomes),
        "scores": plot.scores_plot(scores, selected["threshold"]),
        "curves": plot.curves_plot(curve(found["sft"][0]), online),
    }
