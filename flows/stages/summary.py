"""The results of a run of `bolt`: summary.json, report.html and plots, also as Prefect artifacts.

`python -m flows.stages.summary SUMMARY.json WORLD` puts the table and plot of a demo into README.md and docs/; WORLD is
nano or smollm2.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from flows.stages.run import Run
from infra.settings import PROJECT_ROOT
from infra.store.manifest import Ref, expect
from infra.store.store import Store
from infra.text.markdown import as_text, markdown_table, with_part
from tasks.evaluation.problems import Verifiable
from tasks.report.plot import by_steps_plot, stages_plot, training_plot
from tasks.report.report import Content, curve, data_uri, points, stage_rows, training_title, write_page


def gains_sentence(gains: list[dict[str, Any]]) -> str:
    """Paired differences between neighbouring stages, in points, with their 95 % intervals."""
    each = (f"{g['to']} - {g['from']}: {points(g['gain'])} ({points(g['low'])} to {points(g['high'])})" for g in gains)
    return "Paired gains in points (95 % interval): " + "; ".join(each) + "."


def run_folder() -> str:
    """Name of this flow run's folder in `runs/`: the run's name, and eight digits of its id.

    The id is needed since two runs in Prefect may have the same name. Other characters than `A-Za-z0-9_.-` become `-`.

    Raises:
        RuntimeError: no flow run is in progress.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("a summary is published from inside a flow run")
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', context.flow_run.name)[:100]}-{str(context.flow_run.id)[:8]}"


def publish_summary(
    run: Run,
    benchmark: Verifiable,
    stages: list[dict[str, Any]],
    gains: list[dict[str, Any]],
    policy: Ref,
    guards: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write `runs/RUN/summary.json` and a plot to the store, and a table as a Prefect artifact.

    Returns the summary and its path.
    """
    name = run_folder()
    steps = [record.model_dump() for record in run.steps]
    summary: dict[str, Any] = {"run": name, "model": f"{policy.step}/{policy.key}", "benchmark": benchmark}
    summary |= {"stages": stages, "gains": gains, "guards": guards, "steps": steps}
    path = f"runs/{name}/summary.json"
    run.store.write_bytes(path, json.dumps(summary, indent=1).encode())
    run.store.write_bytes(f"runs/{name}/stages.svg", stages_plot(stages))
    table = markdown_table(stage_rows(stages))
    counts = f"{stages[-1]['problems']} held-out problems, {stages[-1]['samples']} samples per stage."
    text = f"{counts}\n\n{table}\n\n{gains_sentence(gains)}"
    create_markdown_artifact(f"# BOLT\n\n{text}\n", key="bolt-summary", description="Accuracy by stage")
    if not run.store.is_local:
        create_link_artifact(run.store.uri(path), key="bolt-summary-file", link_text="summary.json")
    seconds = sum(record.seconds for record in run.steps)
    cached = sum(record.cached for record in run.steps)
    print(f"\n{text}\n\n{len(steps)} steps, {cached} cached, {seconds:.0f} s in steps")
    return {**summary, "path": run.store.uri(path)}


def show_training(run: Run, model: Ref) -> None:
    """The curves of a training that the run did or found, as a Prefect artifact `bolt-training-STEP`."""
    if run.dry:
        return
    svg = training_plot(model.step, curve(expect(run.store, model)))
    title = training_title(model.step)
    create_markdown_artifact(
        f"## {title}\n\n![{model.step}]({data_uri(svg)})", key=f"bolt-training-{model.step}", description=title
    )


def publish_report(store: Store, summary: dict[str, Any], content: Content, key: str = "bolt") -> None:
    """Write `runs/NAME/report.html` to the store: one page that needs no server.

    Its tables, its plots and a link to it become Prefect artifacts, whose keys begin with `key`.

    Raises:
        BadArtifact: an artifact of the run is gone or damaged.
    """
    path = f"runs/{summary['run']}/report.html"
    with store.open_write(path) as page:
        write_page(page.write, summary, content)
    for name, rows in content.tables.items():
        cells = [{column: as_text(cell) for column, cell in row.items()} for row in rows]
        create_table_artifact(cells, key=f"{key}-{name}", description=content.captions[name])
    shown = ((content.titles[name], name, svg) for name, svg in content.plots.items())
    pictures = "\n\n".join(f"## {title}\n\n![{name}]({data_uri(svg)})" for title, name, svg in shown)
    create_markdown_artifact(pictures, key=f"{key}-plots", description="The plots of the report")
    address = store.local_path(path).as_uri() if store.is_local else store.uri(path)
    described = f"The whole report on one page: `{store.uri(path)}`"  # a browser may refuse to follow a link to a file
    create_link_artifact(address, key=f"{key}-report", link_text="report.html", description=described)
    print(f"report: {store.uri(path)}")


def put_into_readme(path: Path, world: str, root: Path) -> None:
    """Write the figures of a run to README.md (between its two marks), docs/WORLD-summary.json and
    docs/WORLD.svg, and docs/WORLD-by-steps.svg if the problems state their numbers of steps."""
    summary = json.loads(path.read_text())
    (root / "docs" / f"{world}-summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (root / "docs" / f"{world}.svg").write_bytes(stages_plot(summary["stages"]))
    if summary["stages"][0]["by_steps"]:
        (root / "docs" / f"{world}-by-steps.svg").write_bytes(by_steps_plot(summary["stages"]))
    readme = root / "README.md"
    shown = f"{markdown_table(stage_rows(summary['stages']))}\n\n{gains_sentence(summary['gains'])}\n"
    readme.write_text(with_part(readme.read_text(), world, shown))


if __name__ == "__main__":
    put_into_readme(Path(sys.argv[1]), sys.argv[2], PROJECT_ROOT)
