"""What a run of `bolt` tells at its end: summary.json, and the same as Prefect artifacts."""

from __future__ import annotations

import json
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from flows.run import Run
from infra.manifest import Ref

COLUMNS = ("stage", "accuracy (T=1)", "95 % interval", "greedy", "thought tokens", "solution tokens", "truncated", "off format")


def markdown_table(stages: list[dict[str, Any]]) -> str:
    """The stages as a Markdown table; every figure comes from the run."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for stage in stages:
        cells = (
            stage["name"],
            f"{stage['accuracy']:.3f}",
            f"{stage['accuracy_low']:.3f} to {stage['accuracy_high']:.3f}",
            f"{stage['greedy_accuracy']:.3f}",
            f"{stage['thought_tokens']:.1f}",
            f"{stage['solution_tokens']:.1f}",
            f"{stage['truncated']:.1%}",
            f"{stage['off_format']:.1%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def publish_summary(run: Run, stages: list[dict[str, Any]], policy: Ref) -> dict[str, Any]:
    """Write `runs/NAME/summary.json` into the store, and a Markdown and a table artifact. Returns the summary."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    name = context.flow_run.name
    summary = {
        "run": name,
        "model": f"{policy.step}/{policy.key}",
        "stages": stages,
        "steps": [record.model_dump() for record in run.steps],
    }
    path = f"runs/{name}/summary.json"
    run.store.write_bytes(path, json.dumps(summary, indent=1).encode())
    table = markdown_table(stages)
    problems = f"{stages[-1]['problems']} held-out problems, {stages[-1]['samples']} samples a stage"
    create_markdown_artifact(f"# BOLT\n\n{problems}.\n\n{table}\n", key="bolt-summary", description="Accuracy along the stages")
    create_table_artifact(summary["steps"], key="bolt-steps", description="Seconds, cached and rows of every step")
    run.log.info("\n%s", table)
    return {**summary, "path": run.store.uri(path)}
