"""The results of a run of `still2`: summary.json, plots, and what each round explored, also as Prefect artifacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.stages.imitation import Imitated
from flows.stages.run import Run
from flows.stages.summary import gains_sentence, run_folder
from infra.store.manifest import Ref, expect
from infra.text.markdown import markdown_table
from tasks.evaluation.problems import Verifiable
from tasks.report.plot import stages_plot
from tasks.report.report import stage_rows
from tasks.report.rounds import lengths_plot, round_rows


def publish_still2(
    run: Run,
    benchmark: Verifiable,
    stages: list[dict[str, Any]],
    gains: list[dict[str, Any]],
    policy: Ref,
    imitated: Imitated,
    explored: Sequence[Ref],
    learned: Sequence[Ref],
    ended: str,
) -> dict[str, Any]:
    """Write `runs/RUN/summary.json` and plots (`stages.svg`, `lengths-N.svg`) to the store, and Prefect artifacts.

    Args:
        explored: the table of each round's rollouts.
        learned: what was learned from each: LongCoT data, or pairs of thoughts; the last round may have nothing.
        ended: why there was no further round.

    Returns the summary and its path.
    """
    name = run_folder()
    found = [expect(run.store, table).counts for table in explored]
    used = [expect(run.store, table) for table in learned]
    rounds = [
        {**counts, "learned": each.rows if each else 0, "lengths": each.counts.get("lengths", {}) if each else {}}
        for counts, each in zip_longest(found, used)
    ]
    texts = {table.step: expect(run.store, table).counts for table in (*imitated.texts, imitated.longcot)}
    steps = [record.model_dump() for record in run.steps]
    summary: dict[str, Any] = {"run": name, "model": f"{policy.step}/{policy.key}", "benchmark": benchmark}
    summary |= {"stages": stages, "gains": gains, "imitation": texts, "rounds": rounds}
    summary |= {"ended": ended, "steps": steps}
    path = f"runs/{name}/summary.json"
    run.store.write_bytes(path, json.dumps(summary, indent=1).encode())
    run.store.write_bytes(f"runs/{name}/stages.svg", stages_plot(stages))
    pictures = {number: lengths_plot(each["lengths"]) for number, each in enumerate(rounds, 1) if each["lengths"]}
    for number, picture in pictures.items():
        run.store.write_bytes(f"runs/{name}/lengths-{number}.svg", picture)
    text = f"{markdown_table(stage_rows(stages))}\n\n{gains_sentence(gains)}\n\n"
    text += f"{markdown_table(round_rows(rounds))}\n\n" if rounds else ""
    text += f"The rounds ended: {ended}."
    if not run.store.is_local:
        create_link_artifact(run.store.uri(path), key="bolt-still2-file", link_text="summary.json")
    create_markdown_artifact(
        f"# STILL-2\n\n{text}\n", key="bolt-still2", description="Accuracy by round, and what each round explored"
    )
    seconds, cached = sum(record.seconds for record in run.steps), sum(record.cached for record in run.steps)
    print(f"\n{text}\n\n{len(steps)} steps, {cached} cached, {seconds:.0f} s in steps")
    return {**summary, "path": run.store.uri(path)}
