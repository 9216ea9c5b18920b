"""The results of a run of `still1`: summary.json and a plot, and what each round did, also as a Prefect artifact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.stages.mutual import Round
from flows.stages.run import Run
from flows.stages.summary import gains_sentence, run_folder
from infra.store.manifest import Ref, expect
from infra.text.markdown import markdown_table
from tasks.evaluation.problems import Verifiable
from tasks.report.mutual import mutual_rows
from tasks.report.plot import stages_plot
from tasks.report.report import stage_rows
from tasks.report.searches import search_rows


def publish_still1(
    run: Run,
    benchmark: Verifiable,
    stages: list[dict[str, Any]],
    gains: list[dict[str, Any]],
    policy: Ref,
    adapted: Ref,
    rounds: Sequence[Round],
    ended: str,
    searches: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Write `runs/RUN/summary.json` and `stages.svg` to the store, and a Prefect artifact.

    Args:
        adapted: what the policy was first fine-tuned on.
        ended: why there was no further round.
        searches: the figures of each search with each policy.

    Returns the summary and its path.
    """
    name = run_folder()
    shown = [
        {
            "chosen": expect(run.store, each.chosen).counts,
            "reward_model": f"{each.reward_model.step}/{each.reward_model.key}",
            "held_out": expect(run.store, each.measured).counts,
            "pairs": expect(run.store, each.pairs).counts,
            "accuracy": each.accuracy,
            "searched": each.searched,
        }
        for each in rounds
    ]
    steps = [record.model_dump() for record in run.steps]
    summary: dict[str, Any] = {"run": name, "model": f"{policy.step}/{policy.key}", "benchmark": benchmark}
    summary |= {"stages": stages, "gains": gains, "adaptation": expect(run.store, adapted).counts, "rounds": shown}
    summary |= {"ended": ended, "searches": searches, "steps": steps}
    path = f"runs/{name}/summary.json"
    run.store.write_bytes(path, json.dumps(summary, indent=1).encode())
    run.store.write_bytes(f"runs/{name}/stages.svg", stages_plot(stages))
    text = f"{markdown_table(stage_rows(stages))}\n\n{gains_sentence(gains)}\n\n"
    text += f"{markdown_table(mutual_rows(shown))}\n\n" if shown else ""
    text += f"The rounds ended: {ended}."
    text += f"\n\n{markdown_table(search_rows(searches))}" if searches else ""
    if not run.store.is_local:
        create_link_artifact(run.store.uri(path), key="bolt-still1-file", link_text="summary.json")
    described = "Accuracy by round, and how well each reward model tells right from wrong"
    create_markdown_artifact(f"# STILL-1\n\n{text}\n", key="bolt-still1", description=described)
    seconds, cached = sum(record.seconds for record in run.steps), sum(record.cached for record in run.steps)
    print(f"\n{text}\n\n{len(steps)} steps, {cached} cached, {seconds:.0f} s in steps")
    return {**summary, "path": run.store.uri(path)}
