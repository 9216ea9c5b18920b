"""Seed example curation: the in-context examples (BOLT section 3.1.1: 10 of them, four reasoning actions in each)."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from cot_formats.actions import find_actions
from infra.manifest import Ref
from infra.schemas import EXAMPLES
from infra.steps import Plan, step
from infra.store import Store
from infra.tables import write_table
from tasks.responses import LongFormat

SECTIONS = ("Query", "Thoughts", "Solution")
_HEADING = re.compile(rf"^## ({'|'.join(SECTIONS)})[ \t]*$", re.MULTILINE)


class BadInput(ValueError):
    """A file that the user gave does not hold what is expected; the text says where and how to mend it."""


class ExamplesConfig(BaseModel):
    """The in-context examples, written by people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(description="Folder of in-context examples, one Markdown file each.")
    format: LongFormat = Field("bolt", description="LongCoT format that the examples are shown in and answered in.")
    least_actions: int = Field(
        2,
        ge=0,
        le=4,
        description="Fewest of the four reasoning actions that an example must show (this project's choice).",
    )


def read_example(path: Path) -> dict[str, Any]:
    """One Markdown file: front matter with `topic`, then the sections Query, Thoughts and Solution.

    Raises:
        BadInput: a part is missing or empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: the file is not UTF-8 ({error})") from error
    pieces = text.split("---\n", 2)
    if len(pieces) != 3 or pieces[0].strip():
        raise BadInput(f"{path}: expected front matter between two lines of '---' at the top")
    try:
        matter = yaml.safe_load(pieces[1])
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: front matter is no YAML: {error}") from error
    if not isinstance(matter, dict) or not isinstance(matter.get("topic"), str):
        raise BadInput(f"{path}: front matter must name a topic, e.g. 'topic: coding'")
    _, *parts = _HEADING.split(pieces[2])
    names, bodies = tuple(parts[::2]), [body.strip() for body in parts[1::2]]
    if names != SECTIONS:
        raise BadInput(
            f"{path}: expected the sections {', '.join('## ' + name for name in SECTIONS)}, each once and in order, "
            f"found {', '.join('## ' + name for name in names) or 'none'}"
        )
    for name, body in zip(names, bodies, strict=True):
        if not body:
            raise BadInput(f"{path}: section '## {name}' is empty")
    sections = dict(zip(("query", "thoughts", "solution"), bodies, strict=True))
    return {"example_id": path.stem, "topic": matter["topic"], **sections}


def checked(example: dict[str, Any], config: ExamplesConfig, path: Path) -> dict[str, Any]:
    """The example with the actions found in its thoughts. Raises `BadInput` where it can't serve."""
    try:
        rendered = FORMATS[config.format].render(example["thoughts"], example["solution"])
    except ValueError as error:
        raise BadInput(f"{path}: cannot be written in the format {config.format}: {error}") from error
    if not FORMATS[config.format].parse(rendered).ok:
        raise BadInput(f"{path}: thoughts and solution do not survive the format {config.format}")
    actions = sorted({action.name for action in find_actions(example["thoughts"])})
    if len(actions) < config.least_actions:
        raise BadInput(
            f"{path}: section Thoughts shows {len(actions)} of the four reasoning actions "
            f"({', '.join(actions) or 'none'}), expected at least {config.least_actions}: "
            "say out loud where it analyses, plans, branches and reflects"
        )
    return {**example, "actions": actions}


def example_files(config: ExamplesConfig) -> list[Path]:
    """The candidates in name order. Raises `BadInput` where the folder is missing or empty."""
    files = sorted(config.folder.glob("*.md"))
    if not files:
        raise BadInput(f"examples folder {config.folder} is missing or holds no *.md file")
    return files


@step
def curate_examples(plan: Plan, store: Store, *, config: ExamplesConfig) -> Ref:
    """Check every candidate and write the table `examples`."""
    rows = [checked(read_example(path), config, path) for path in example_files(config)]
    topics = Counter(row["topic"] for row in rows)
    return write_table(store, plan.step, plan.key, EXAMPLES, [rows], plan.provenance, counts={"topics": dict(topics)})
