"""Curation of in-context examples (BOLT section 3.1.1: 10 of them, each showing four reasoning actions).

This module reads candidates, checks each by its text alone, and selects among ranked ones. What needs models (whether
three examples fit the context, the ranking by reward) and the step itself are in `tasks/curation/choose.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from cot_formats.actions import ACTIONS, find_actions
from cot_formats.responses import LongFormat
from infra.errors import BadInput
from infra.steps.inputs import digest_of_files
from infra.text.json_lines import json_lines

SECTIONS = ("Query", "Thoughts", "Solution")
FRONT_MATTER = {"topic": "coding", "author": "Ada Example", "licence": "CC-BY-4.0"}  # each with a sample value
COLUMNS = ("query", "thoughts", "solution", "topic")
TABLES = (".parquet", ".jsonl")
_HEADING = re.compile(rf"^## ({'|'.join(SECTIONS)})[ \t]*$", re.MULTILINE)

_DONE = (
    r"(?:worked out|computed|calculated|found|shown|showed|derived|saw|seen|noted|said|explained|argued|reasoned"
    r"|checked)"
)
_BEFORE = r"(?:above|before|earlier|already|previously)"
RELIANCE = (
    r"(?:my|the|our) (?:own )?(?:internal |inner )?thoughts (?:above|section|show|showed|were)",
    r"(?:in|from|see|per) my (?:internal |inner )?(?:thoughts|thinking|reasoning|analysis|working|notes)",
    r"(?:internal|inner) (?:thoughts|thinking|monologue|reasoning)",
    r"(?:thoughts|thinking|reasoning|analysis|working|calculations?|draft) (?:above|earlier)",
    r"(?:above|earlier|previous|preceding) (?:thoughts|thinking|reasoning|analysis|working|calculations?|draft)",
    rf"as (?:i|we)(?:'ve| have)?(?: already)? {_DONE}(?: it| this| that)? {_BEFORE}",
    rf"as (?:i|we)(?:'ve| have)? already {_DONE}",
    rf"as (?:was )?(?:already )?{_DONE} {_BEFORE}",
    rf"(?:i|we)(?:'ve| have)? (?:already )?{_DONE} (?:above|earlier|before)",
    r"(?:chain of thought|scratch ?pad)",
)
"""Phrases by which a solution relies on thoughts that its reader never sees; any case, straight or curly apostrophes.

The list is strict, since a person can reword an example: "the calculation above" is found even if the solution has one.
"""
_RELIANCE = re.compile(rf"\b(?:{'|'.join(RELIANCE)})\b".replace("'", "['\u2019]").replace(" ", r"\s+"), re.IGNORECASE)


class ExamplesConfig(BaseModel):
    """The in-context examples, written by people: where the candidates are, and which of them are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(
        Path("prompts/examples"),
        description="The candidates: a folder of Markdown files, one per example, or a table (.parquet or .jsonl) with "
        "query, thoughts, solution and topic. The default is this project's own examples, for real models.",
    )
    format: LongFormat = Field("bolt", description="LongCoT format in which the examples are shown.")
    count: int = Field(10, ge=1, description="Number of examples taken (BOLT: 10); fewer suitable ones are an error.")
    min_actions: int = Field(
        4,
        ge=0,
        le=4,
        description="Minimum number of the four reasoning actions that an example's thoughts must show (BOLT: 4).",
    )
    min_words: int = Field(400, ge=1, description="Minimum length of the thoughts, in words (this project's choice).")
    max_words: int = Field(1_500, ge=1, description="Maximum length of the thoughts, in words (this project's choice).")
    max_per_topic: int = Field(
        2, ge=1, description="Maximum number of examples taken from one topic (this project's choice)."
    )
    topics: tuple[str, ...] = Field((), description="Topics that must each have an example among those taken.")
    held_out: tuple[Path, ...] = Field(
        (), description="Files of evaluation sets, with the query in a field `query`; no example may resemble these."
    )
    near_duplicates: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Jaccard similarity of word trigrams from which texts are near-duplicates (this project's choice).",
    )
    query_tokens: int = Field(
        1_024,
        ge=1,
        description="Number of tokens of the context that the examples must leave for a query (this project's choice).",
    )

    def contents(self) -> str:
        """Digest of the files of candidates and of the held-out files. Raises `BadInput`."""
        return digest_of_files([*example_files(self), *self.held_out])


# ---- reading


def read_example(path: Path) -> dict[str, Any]:
    """Read a Markdown file: front matter with topic, author and licence, then sections Query, Thoughts and Solution.

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
        raise BadInput(f"{path}: front matter is not YAML: {error}") from error
    for name, sample in FRONT_MATTER.items():
        if not isinstance(matter, dict) or not isinstance(matter.get(name), str) or not matter[name].strip():
            raise BadInput(f"{path}: front matter must name the {name} as a string, e.g. '{name}: {sample}'")
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
    return {"example_id": path.stem, **{name: matter[name].strip() for name in FRONT_MATTER}, **sections}


def example_files(config: ExamplesConfig) -> list[Path]:
    """The files of the candidates, sorted by name. Raises `BadInput` if there are none."""
    if config.path.is_file() and config.path.suffix in TABLES:
        return [config.path]
    files = sorted(config.path.glob("*.md"))
    if not files:
        raise BadInput(f"examples: {config.path} is neither a table ({', '.join(TABLES)}) nor a folder with *.md files")
    return files


def candidates(config: ExamplesConfig) -> list[dict[str, Any]]:
    """All candidates, in the order of their files or rows.

    Each has example_id, topic, author, licence, query, thoughts and solution. Author and licence may be None if the
    candidates are from a table.

    Raises:
        BadInput: a file or row lacks a part, or two candidates have the same id.
    """
    files = example_files(config)
    found = [read_example(path) for path in files] if files != [config.path] else list(_table_rows(config.path))
    duplicates = [name for name, times in Counter(each["example_id"] for each in found).items() if times > 1]
    if duplicates:
        raise BadInput(
            f"{config.path}: field example_id holds {duplicates[0]!r} more than once: make it unique, or omit the field"
        )
    return found


def _table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The candidates in a table; if a row has no `example_id`, it is made from the file's name and the row number."""
    for row, record in enumerate(_json_lines(path) if path.suffix == ".jsonl" else _parquet_rows(path)):
        where = f"{path}, row {row}"
        for name in COLUMNS:
            value = record.get(name)
            if not isinstance(value, str) or not value.strip():
                found = "none" if value is None else "a blank one" if isinstance(value, str) else type(value).__name__
                raise BadInput(f"{where}: field {name} must be a non-blank string, found {found}")
        for name in ("example_id", "author", "licence"):
            if not isinstance(record.get(name), str | None):
                raise BadInput(f"{where}: field {name} must be a string or absent, found {type(record[name]).__name__}")
        yield {
            "example_id": record.get("example_id") or f"{path.stem}-{row:05d}",
            **{name: record[name].strip() for name in COLUMNS},
            "author": record.get("author"),
            "licence": record.get("licence"),
        }


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for record in json_lines(file, str(path)):
            if isinstance(record, BadInput):
                raise record
            yield record


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a complete Parquet file ({error}): copy or write it again") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise BadInput(
            f"{path}: column {', '.join(missing)} is missing: expected {', '.join(COLUMNS)}, "
            f"found {', '.join(table.column_names) or 'none'}"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


# ---- checking a candidate by its text


def malformed(example: dict[str, Any], config: ExamplesConfig) -> str | None:
    """Why thoughts and solution do not survive rendering and parsing in the format; None if they do."""
    try:
        rendered = FORMATS[config.format].render(example["thoughts"], example["solution"])
    except ValueError as error:
        return f"cannot be rendered in the format {config.format}: {error}"
    parsed = FORMATS[config.format].parse(rendered)
    same = parsed.ok and (parsed.thoughts, parsed.solution) == (example["thoughts"], example["solution"])
    return None if same else f"thoughts and solution change when rendered and parsed in the format {config.format}"


def evidence(thoughts: str) -> dict[str, dict[str, Any]]:
    """Where the thoughts show each reasoning action: its spans, and a quote of the first one in its context.

    The actions are in the order of `ACTIONS`; those not shown are missing. A span is (start, end), in characters. The
    quote has up to 40 characters of context on either side, cut at a word boundary.
    """
    found = find_actions(thoughts)
    shown: dict[str, dict[str, Any]] = {}
    for name in ACTIONS:
        spans = [[each.start, each.end] for each in found if each.name == name]
        if spans:
            before, after = thoughts[: spans[0][0]][-40:], thoughts[spans[0][1] :][:40]
            before = before.partition(" ")[2] if len(before) == 40 else before
            after = after.rpartition(" ")[0] if len(after) == 40 else after
            quote = " ".join(f"{before}{thoughts[slice(*spans[0])]}{after}".split())
            shown[name] = {"quote": quote, "spans": spans}
    return shown


def too_few_actions(example: dict[str, Any], config: ExamplesConfig) -> str | None:
    """Which reasoning actions the thoughts show, if these are too few; None if they are enough."""
    shown = list(evidence(example["thoughts"]))
    if len(shown) >= config.min_actions:
        return None
    return (
        f"the thoughts show {len(shown)} of the four reasoning actions ({', '.join(shown) or 'none'}), expected at "
        f"least {config.min_actions}: spell out where they analyse, plan, branch and reflect"
    )


def out_of_bounds(example: dict[str, Any], config: ExamplesConfig) -> str | None:
    """How many words (separated by white space) the thoughts have, if too few or too many; None otherwise."""
    words = len(example["thoughts"].split())
    if config.min_words <= words <= config.max_words:
        return None
    return f"thoughts of {words} words, expected {config.min_words} to {config.max_words}"


def reliant(example: dict[str, Any], config: ExamplesConfig) -> str | None:
    """Where the solution relies on the thoughts (`RELIANCE`); None if it can be read alone."""
    found = _RELIANCE.search(example["solution"])
    return f"the solution relies on the thoughts: {found[0]!r}" if found else None


RULES = {
    "malformed": malformed,
    "too few actions": too_few_actions,
    "length": out_of_bounds,
    "solution relies on the thoughts": reliant,
}
"""The rules by which candidates are rejected; each returns the reason, or None."""


def checked(example: dict[str, Any], config: ExamplesConfig) -> dict[str, Any]:
    """The candidate with the result of all checks of its text.

    `rejected` is the first rule that it violates, `why` the reasons for all of them; both are None if there are none.
    """
    violated = {name: why for name, rule in RULES.items() if (why := rule(example, config))}
    return {
        **example,
        "evidence": evidence(example["thoughts"]),
        "words": len(example["thoughts"].split()),
        "tokens": None,
        "reward": None,
        "rejected": next(iter(violated), None),
        "why": "; ".join(violated.values()) or None,
    }


# ---- selecting among the candidates that remain


def reject(example: dict[str, Any], rule: str, why: str) -> None:
    """Reject a candidate by the rule of that name, for the reason `why`."""
    example["rejected"], example["why"] = rule, why


def remaining(examples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The candidates that are not rejected so far."""
    return [each for each in examples if each["rejected"] is None]


def select(ranked: Sequence[dict[str, Any]], config: ExamplesConfig) -> None:
    """Reject all but the best `count`, with at most `max_per_topic` per topic.

    The best of each required topic is taken before all others.
    """
    required = {topic.casefold() for topic in config.topics}
    best: dict[str, dict[str, Any]] = {}
    for each in ranked:
        if each["topic"].casefold() in required:
            best.setdefault(each["topic"].casefold(), each)
    first = {each["example_id"] for each in best.values()}
    per_topic: Counter[str] = Counter()
    for each in sorted(ranked, key=lambda each: each["example_id"] not in first):
        topic = each["topic"].casefold()
        if per_topic[topic] == config.max_per_topic:
            reject(each, "topic", f"topic {each['topic']} already has its {config.max_per_topic} examples")
        elif per_topic.total() == config.count:
            reject(each, "not needed", f"ranked behind the {config.count} taken")
        else:
            per_topic[topic] += 1


def taken_examples(examples: Sequence[dict[str, Any]], config: ExamplesConfig) -> list[dict[str, Any]]:
    """The examples that are taken. Raises `BadInput` if they are too few, or if a required topic has none."""
    found = remaining(examples)
    missing = [topic for topic in config.topics if topic.casefold() not in {each["topic"].casefold() for each in found}]
    if len(found) == config.count and not missing:
        return found
    problem = f"{config.count} examples are needed, {len(found)} of {len(examples)} candidates can be taken"
    if missing:
        problem = f"no example of the topic {', '.join(missing)} (topics) is among those taken"
    reasons = "".join(f"\n- {each['example_id']}: {each['why']}" for each in examples if each["rejected"])
    raise BadInput(f"{config.path}: {problem}: fix or add candidates, or relax the settings.{reasons}")
