"""The card of a LongCoT data set: its content and how it was made, as Markdown that the Hugging Face Hub reads.

It is written from the manifests of the table `longcot` and of its ancestors; no table is read. Names and topics come
from users and models, so they are escaped; paths are shown as the file's name only.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

import yaml

from infra.store.manifest import BadArtifact, Manifest, Ref, expect
from infra.store.store import Store
from infra.text.markdown import as_text, markdown_table

MOST_TOPICS = 50
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
SETTINGS = ("responses", "filtered", "rewards", "longcot")
OMITTED = {"engine of model", "engine of reward_model", "prompt", "shard", "shards"}  # of no interest to a reader
ABOUT = """\
Long chains of thought made by the bootstrapping stage of BOLT (arXiv 2502.03860): an instruct model without long
reasoning is sampled with in-context examples; rules drop malformed responses; an outcome reward model scores the
solutions alone; the best response to each query is kept if its score is above a percentile of all scores.

Columns: `query`, `thoughts` and `solution`, as plain text without a chat template; `format`, that of the
responses; `reward`, the score of the solution; `query_id` and `sample`, which identify the sample in the run."""


def ancestors(store: Store, table: Ref) -> list[Manifest]:
    """The manifests of all artifacts that a table was made from, inputs first, and the table's own last.

    Artifacts that are missing, damaged or have been remade since are left out, as are ancestors reached only by them.

    Raises:
        BadArtifact: the table itself is missing, damaged or has been remade.
    """
    found: dict[str, Manifest] = {}

    def visit(ref: Ref) -> None:
        if f"{ref.step}/{ref.key}" in found:
            return
        manifest = expect(store, ref)
        for each in manifest.inputs.values():
            with suppress(BadArtifact):
                visit(each)
        found[manifest.folder] = manifest

    visit(table)
    return list(found.values())


def dataset_card(made: Sequence[Manifest], licence: str = "other") -> str:
    """The card, with the Hub's front matter. `made`: the `ancestors` of the table, ending with the table itself."""
    table = made[-1]
    head = {
        "license": licence,
        "pretty_name": "LongCoT data made with BOLT",
        "task_categories": ["text-generation"],
        "tags": ["bolt", "long-chain-of-thought", "synthetic"],
        "size_categories": [size_category(table.rows)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    }
    sections = {
        "Made with": markdown_table(models(made)),
        "Sources": markdown_table(sources(made)),
        "Funnel": markdown_table(funnel(made)),
        "Rewards and lengths of the rows": markdown_table(figures(table)),
        "Topics": markdown_table(topics(table)),
        "Settings": settings(made),
        "Provenance": markdown_table(provenance(made)),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# LongCoT data made with BOLT\n\n{table.rows:,} rows. "
        f"Made {table.ended:%Y-%m-%d} as `{table.folder}`.\n\n{ABOUT}\n\n{body}\n"
    )


def size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    return next((name for limit, name in SIZES if rows < limit), "n>1M")


def models(made: Sequence[Manifest]) -> list[dict[str, str]]:
    """The models that were used, and for what."""
    parts = {"wrote the responses": ("responses", "model"), "scored the solutions": ("rewards", "reward_model")}
    rows = []
    for part, (step, name) in parts.items():
        used = {each.inputs[name].key for each in made if each.step == step and name in each.inputs}
        origin = {each.key: str(each.config.get("name") or each.folder) for each in made if each.kind == "model"}
        rows += [{"part": part, "model": as_text(origin.get(key, key))} for key in sorted(used)]
    return rows


def sources(made: Iterable[Manifest]) -> list[dict[str, Any]]:
    """The sources of the queries, with their licences as the user states them; a data set's name has its revision."""
    rows = []
    for each in made:
        source = each.config.get("source") or {}
        place = source.get("dataset") or source.get("path")
        if each.kind == "table" and place:
            name = place if source.get("dataset") else PurePosixPath(str(place)).name
            licence = source.get("licence") or "not stated"
            rows.append({"source": as_text(name), "licence": as_text(licence), "queries": f"{each.rows:,}"})
    return rows


def funnel(made: Sequence[Manifest]) -> list[dict[str, str]]:
    """What each step counted, summed over its shards."""
    steps: dict[str, Counter[str]] = defaultdict(Counter)
    for each in made:
        if each.kind == "table":
            steps[each.step].update({name: count for name, count in each.counts.items() if isinstance(count, int)})
            steps[each.step]["rows"] += each.rows
    return [
        {"step": as_text(step), "counted": as_text(name), "count": f"{count:,}"}
        for step, counts in steps.items()
        for name, count in counts.items()
    ]


def figures(table: Manifest) -> list[dict[str, str]]:
    """The distribution of rewards and lengths."""
    kept: Mapping[str, Mapping[str, float]] = table.counts.get("of those kept", {})
    return [
        {"": name.replace("_", " "), **{statistic: f"{value:,.4g}" for statistic, value in spread.items()}}
        for name, spread in kept.items()
        if spread
    ]


def topics(table: Manifest) -> list[dict[str, str]]:
    """The most frequent topics."""
    counted: Mapping[str, int] = table.counts.get("topics", {})
    listed = sorted(counted.items(), key=lambda pair: -pair[1])
    rows = [
        {"topic": as_text(name) or "(none)", "rows": f"{count:,}", "share": f"{count / table.rows:.1%}"}
        for name, count in listed[:MOST_TOPICS]
    ]
    rest = sum(count for _, count in listed[MOST_TOPICS:])
    return [*rows, {"topic": "(others)", "rows": f"{rest:,}", "share": f"{rest / table.rows:.1%}"}] if rest else rows


def settings(made: Sequence[Manifest]) -> str:
    """The settings of generation, filtering, scoring and selection, as JSON in a code fence that no value can close."""
    shown = {
        each.step: {name: value for name, value in each.config.items() if name not in OMITTED}
        for each in made
        if each.step in SETTINGS
    }
    return "```json\n" + json.dumps(shown, indent=1).replace("`", "\\u0060") + "\n```" if shown else ""


def provenance(made: Sequence[Manifest]) -> list[dict[str, str]]:
    """All artifacts, with the digests of their content and of the code that made them."""
    return [{"artifact": as_text(each.folder), "sha256": each.digest[:16], "code": each.code[:16]} for each in made]
