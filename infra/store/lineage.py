"""The lineage of artifacts and rows: their inputs, back to the sources, as the manifests record them."""

from __future__ import annotations

import io
import reprlib
from collections.abc import Iterator
from typing import Any

from infra.store.manifest import BadArtifact, Manifest, Ref, expect, load, ref_of
from infra.store.store import Store
from infra.store.tables import read_rows

SHOWN = reprlib.Repr()  # for cells: cuts long text and escapes control characters
SHOWN.maxstring = SHOWN.maxother = 100


def lineage(store: Store, artifact: Ref | tuple[str, str]) -> str:
    """The lineage as a text tree, one artifact per line: step/key, rows or files, digest, with its inputs below.

    An input that is gone, torn, or was made again since is marked. Raises `StoreError` if the store fails.
    """
    step, key = (artifact.step, artifact.key) if isinstance(artifact, Ref) else artifact
    digest = artifact.digest if isinstance(artifact, Ref) else None
    return "\n".join(_lines(store, step, key, digest, seen=set()))


def _lines(store: Store, step: str, key: str, digest: str | None, seen: set[str]) -> list[str]:
    folder = f"{step}/{key}"
    try:
        manifest = load(store, step, key)
    except BadArtifact:
        return [f"{folder}  (its manifest is torn)"]
    if manifest is None:
        return [f"{folder}  (gone)"]
    line = _describe(manifest) + ("  (made again since)" if digest not in (None, manifest.digest) else "")
    if folder in seen and manifest.inputs:
        return [f"{line}  (inputs as above)"]
    seen.add(folder)
    lines = [line]
    for count, (name, ref) in enumerate(sorted(manifest.inputs.items()), 1):
        last = count == len(manifest.inputs)
        head, *below = _lines(store, ref.step, ref.key, ref.digest, seen)
        lines.append(f"{'└─' if last else '├─'} {name}: {head}")
        lines += [f"{'  ' if last else '│ '} {line}" for line in below]
    return lines


def _describe(manifest: Manifest) -> str:
    unit = "rows" if manifest.kind == "table" else "files"
    return f"{manifest.folder}  {manifest.rows:,} {unit}  sha256 {manifest.digest[:12]}"


def history(store: Store, step: str, key: str, row: int) -> Iterator[str]:
    """The history of a row: the row, then the rows that it was made from, back to its query's source.

    Rows are matched by `query_id` (`problem_id` for grades) and, if the row names samples, by sample.

    Raises:
        ValueError: there is no such table or row.
        BadArtifact, StoreError: a table of the history is gone or damaged.
    """
    manifest = load(store, step, key)
    if manifest is None or manifest.kind != "table":
        raise ValueError(f"{step}/{key} is not a table in {store.root}")
    found = next((each for n, each in enumerate(read_rows(store, ref_of(store, manifest))) if n == row), None)
    if found is None:
        raise ValueError(f"{step}/{key} has {manifest.rows} rows, counted from 0: no row {row}")
    yield from _row_lines(manifest, row, found)
    samples = {value for name, value in found.items() if name in ("sample", "chosen_sample", "rejected_sample")}
    query_id = found.get("query_id", found.get("problem_id"))
    if query_id is not None:
        yield from _behind(store, manifest, query_id, samples, {f"{step}/{key}"})


def _behind(store: Store, manifest: Manifest, query_id: str, samples: set[int], seen: set[str]) -> Iterator[str]:
    """The rows of one query (and of some of its samples) in all the tables that a table was made from."""
    for _, ref in sorted(manifest.inputs.items()):
        if ref.kind != "table" or f"{ref.step}/{ref.key}" in seen:
            continue
        seen.add(f"{ref.step}/{ref.key}")
        made = expect(store, ref)
        columns = {column.name for column in made.columns}
        if "query_id" in columns:
            for number, row in enumerate(read_rows(store, ref)):
                if row["query_id"] == query_id and (not samples or row.get("sample") in samples | {None}):
                    yield from _row_lines(made, number, row)
        yield from _behind(store, made, query_id, samples, seen)


def _row_lines(manifest: Manifest, number: int, row: dict[str, Any]) -> Iterator[str]:
    yield f"{manifest.folder}  row {number}"
    for name, value in row.items():
        yield f"    {name}: {SHOWN.repr(value)}"


def lineage_picture(store: Store, artifact: tuple[str, str]) -> bytes:
    """The lineage as a graph in SVG: sources on the left, the artifact on the right."""
    import networkx as nx
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    graph, labels = nx.DiGraph(), dict[str, str]()
    waiting = [artifact]
    while waiting:
        step, key = waiting.pop()
        folder = f"{step}/{key}"
        if folder in labels:
            continue
        try:
            manifest, missing = load(store, step, key), "gone"
        except BadArtifact:
            manifest, missing = None, "torn"
        size = f"{manifest.rows:,} {'rows' if manifest.kind == 'table' else 'files'}" if manifest else missing
        labels[folder] = f"{step}\n{key[:12]}\n{size}"
        graph.add_node(folder)
        for ref in manifest.inputs.values() if manifest else []:
            graph.add_edge(f"{ref.step}/{ref.key}", folder)
            waiting.append((ref.step, ref.key))
    layers = dict(enumerate(nx.topological_generations(graph)))
    places = nx.multipartite_layout(graph, subset_key=layers)
    widest = max(len(layer) for layer in layers.values())
    with rc_context({"svg.hashsalt": "bolt"}):
        figure = Figure(figsize=(2 + 1.6 * len(layers), 2 + 0.8 * widest))
        axes = figure.subplots()
        nx.draw_networkx_edges(graph, places, ax=axes, edge_color="#999", node_size=2600)
        nx.draw_networkx_labels(graph, places, labels, ax=axes, font_size=7, bbox={"fc": "white", "ec": "#666"})
        axes.set_axis_off()
        axes.margins(0.15)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
