"""Topics of queries (BOLT section 3.1.2): an LLM proposes a list from a sample, a person edits it, an LLM tags with it.

Here are the settings of all three, and the list that the person edits. The LLM's part is in `topic_proposals` and
`topic_tags`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import Field

from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import TOPICS
from infra.store.store import Store
from infra.store.tables import write_table
from tasks.queries.ask import JudgeConfig

OTHER = "other"  # the tag of a query that fits none of the topics


class TopicsConfig(JudgeConfig):
    """How topics are proposed, edited, and assigned to queries."""

    file: Path | None = Field(
        None,
        description="YAML file with the edited list of topics. If omitted, a judge proposes a list, and the run waits "
        "for a person to edit it in the Prefect UI.",
    )
    wait_hours: float = Field(
        24, gt=0, description="Hours to wait for that person; then the run fails and names the file to edit instead."
    )
    propose_template: Path = Field(
        Path("prompts/propose_topics.md"), description="Template that asks for topics, with {queries} and {most}."
    )
    tag_template: Path = Field(
        Path("prompts/tag_topic.md"), description="Template that asks for a query's topic, with {topics} and {query}."
    )
    sample: int = Field(
        1000, ge=1, description="Queries that topics are proposed from, drawn by a seeded hash (this project's choice)."
    )
    queries_per_proposal: int = Field(20, ge=1, description="Number of queries shown in one request for topics.")
    proposal_tokens: int = Field(150, ge=1, description="Tokens of each query, from its beginning, shown there.")
    names_per_proposal: int = Field(10, ge=2, description="Maximum number of topics named in one answer.")
    max_topics: int = Field(30, ge=2, description="Maximum number of topics shown to the person, the most named first.")
    seed: int = Field(0, description="Seed of the sample.")


EDITING = ("config.file", "config.wait_hours", "config.max_topics")
PROPOSING = tuple(
    f"config.{name}"
    for name in ("propose_template", "sample", "queries_per_proposal", "proposal_tokens", "names_per_proposal", "seed")
)
TAGGING = ("config.tag_template", "config.shown_tokens")
"""Settings by purpose: the key of each step holds only its own."""


def normal_name(name: str) -> str:
    """The form by which two names are the same: only letters, digits, + and #, case folded."""
    return re.sub(r"(?![+#])[\W_]", "", unicodedata.normalize("NFKC", name).casefold())


def as_yaml(topics: Sequence[dict[str, Any]]) -> str:
    """The proposed topics as a file for a person to edit."""
    head = "# Proposed topics, most named first. Delete, rename, merge, add; then give this file as topics.file.\n"
    return head + yaml.safe_dump([topic["name"] for topic in topics], allow_unicode=True, sort_keys=False)


def read_topics(path: Path) -> list[str]:
    """The topics in an edited YAML file. Raises `BadInput`, which names file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        names, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise BadInput(f"topics file {path} does not exist") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: not YAML in UTF-8 ({error}): expected a list, one '- topic' per line") from error
    if not isinstance(names, list):
        raise BadInput(f"{path}: expected a list of topics, one '- topic' per line, found {type(names).__name__}")
    assert isinstance(tree, yaml.SequenceNode)  # as its value is a list
    return checked_topics(names, str(path), [f"line {node.start_mark.line + 1}" for node in tree.value])


def checked_topics(names: Sequence[object], source: str, places: Sequence[str]) -> list[str]:
    """The topics in a person's list, with white space collapsed.

    Args:
        source: what error messages call the list.
        places: what they call each entry.

    Raises:
        BadInput: an entry is not a usable name, two entries differ only in case, spaces and punctuation, or there are
            fewer than two.
    """
    seen: dict[str, str] = {}
    topics = []
    for name, entry in zip(names, places, strict=True):
        place = f"{source}, {entry}"
        topics.append(_checked_name(name, place))
        identity = normal_name(topics[-1])
        if identity in seen:
            raise BadInput(f"{place}: topic {name!r} is a duplicate of {seen[identity]}: delete one of the two")
        seen[identity] = f"{name!r} ({place})"
    if len(topics) < 2:
        raise BadInput(f"{source}: expected at least 2 topics, found {len(topics)}: add some")
    return topics


def _checked_name(name: object, place: str) -> str:
    """The name with white space collapsed. Raises `BadInput` if it is not printable text with letters or digits."""
    if not isinstance(name, str):
        raise BadInput(f"{place}: a topic must be a string, found {type(name).__name__} {name!r}: put it in quotes")
    plain = " ".join(name.split())
    if "\\" in plain or not plain.isprintable():  # vLLM would read a backslash as an escape in its grammar
        raise BadInput(f"{place}: a topic must not contain backslashes or control characters, found {name!r}")
    if not normal_name(name):
        raise BadInput(f"{place}: a topic must have letters or digits, found {name!r}: delete the entry or name it")
    return plain


@step
def keep_topics(plan: Plan, store: Store, *, names: Sequence[str]) -> Ref:
    """Write the table of the topics that a file lists."""
    return _write_topics(plan, store, names)


@step(outside_key=("names",))
def keep_edited_topics(plan: Plan, store: Store, *, proposed: Ref, names: Sequence[str]) -> Ref:
    """Write the table of the topics that a person made of a proposal. They are asked once for each proposal."""
    return _write_topics(plan, store, names)


def _write_topics(plan: Plan, store: Store, names: Sequence[str]) -> Ref:
    rows = [{"name": name, "proposals": None} for name in names]
    return write_table(store, plan.step, plan.key, TOPICS, [rows], plan.provenance)
