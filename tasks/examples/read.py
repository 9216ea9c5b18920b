"""Seed example curation: the in-context examples (BOLT section 3.1.1: 10 of them, four reasoning actions in each).

Reading candidates and judging each by its text alone. What takes models (the context that three examples must fit, the
reward model's ranking) and the step that writes the table are in `tasks/curation/choose.py`.
"""

from __future__ import annotations

import json
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

SECTIONS = ("Query", "Thoughts", "Solution")
MATTER = ("topic", "author", "licence")
COLUMNS = ("query", "thoughts", "solution", "topic")
TABLES = (".parquet", ".jsonl")
_HEADING = re.compile(rf"^## ({'|'.join(SECTIONS)})[ \t]*$", re.MULTILINE)

_SAID = (
    r"(?:worked out|computed|calculated|found|shown|showed|derived|saw|seen|noted|said|explained|argued|reasoned"
    r"|checked)"
)
_BEFORE = r"(?:above|before|earlier|already|previously)"
LEANS = (
    r"(?:my|the|our) (?:own )?(?:internal |inner )?thoughts (?:above|section|show|showed|were)",
    r"(?:in|from|see|per) my (?:internal |inner )?(?:thoughts|thinking|reasoning|analysis|working|notes)",
    r"(?:internal|inner) (?:thoughts|thinking|monologue|reasoning)",
    r"(?:thoughts|thinking|reasoning|analysis|working|calculations?|draft) (?:above|earlier)",
    r"(?:above|earlier|previous|preceding) (?:thoughts|thinking|reasoning|analysis|working|calculations?|draft)",
    rf"as (?:i|we)(?:'ve| have)?(?: already)? {_SAID}(?: it| this| that)? {_BEFORE}",
    rf"as (?:i|we)(?:'ve| have)? already {_SAID}",
    rf"as (?:was )?(?:already )?{_SAID} {_BEFORE}",
    rf"(?:i|we)(?:'ve| have)? (?:already )?{_SAID} (?:above|earlier|before)",
    r"(?:chain of thought|scratch ?pad)",
)
"""Phrases by which a solution leans on thoughts that its reader never sees; any case, straight or curly apostrophes.

Strict, since a person can reword an example: "the calculation above" may mean the solution's own, and is found as well.
"""
_LEANS = re.compile(rf"\b(?:{'|'.join(LEANS)})\b".replace("'", "['\u2019]").replace(" ", r"\s+"), re.IGNORECASE)


class ExamplesConfig(BaseModel):
    """The in-context examples, written by people: where the candidates are, and what one must be to be taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(
        Path("prompts/examples"),
        description="Candidates: a folder of Markdown files, one each, or a table (.parquet or .jsonl) with query, "
        "thoughts, solution and topic. The default are this project's own, for real models.",
    )
    format: LongFormat = Field("bolt", description="LongCoT format that the examples are shown in and answered in.")
    count: int = Field(10, ge=1, description="Examples taken (BOLT: 10); fewer that serve are an error.")
    min_actions: int = Field(
        4,
        ge=0,
        le=4,
        description="Fewest of the four reasoning actions that an example's thoughts must show (BOLT: 4).",
    )
    min_words: int = Field(400, ge=1, description="Fewest words of the thoughts (this project's choice).")
    max_words: int = Field(1_500, ge=1, description="Most words of the thoughts (this project's choice).")
    max_per_topic: int = Field(2, ge=1, description="Most examples taken of one topic (this project's choice).")
    topics: tuple[str, ...] = Field((), description="Topics of each of which an example must be among those taken.")
    held_out: tuple[Path, ...] = Field(
        (), description="JSONL files (as `queries.path`) of evaluation sets whose queries no example may be near to."
    )
    near_duplicates: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Near-duplicates share at least this much of their word trigrams (Jaccard; this project's choice).",
    )
    query_tokens: int = Field(
        1_024,
        ge=1,
        description="Tokens of the context that the examples must leave for a query (this project's choice).",
    )

    def contents(self) -> str:
        """Digest of the candidates' files and of the files held out. Raises `BadInput`, `FileNotFoundError`."""
        return digest_of_files([*example_files(self), *self.held_out])


# ---- reading


def read_example(path: Path) -> dict[str, Any]:
    """One Markdown file: front matter with topic, author and licence, then the sections Query, Thoughts and Solution.

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
    for name in MATTER:
        if not isinstance(matter, dict) or not isinstance(matter.get(name), str) or not matter[name].strip():
            shown = {"topic": "coding", "author": "Ada Example", "licence": "CC-BY-4.0"}[name]
            raise BadInput(f"{path}: front matter must name the {name} as a text, e.g. '{name}: {shown}'")
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
    return {"example_id": path.stem, **{name: matter[name].strip() for name in MATTER}, **sections}


def example_files(config: ExamplesConfig) -> list[Path]:
    """The candidates' files in name order. Raises `BadInput` where there is none."""
    if config.path.is_file() and config.path.suffix in TABLES:
        return [config.path]
    files = sorted(config.path.glob("*.md"))
    if not files:
        raise BadInput(f"examples: {config.path} is no table ({', '.join(TABLES)}) and no folder that holds *.md files")
    return files


def candidates(config: ExamplesConfig) -> list[dict[str, Any]]:
    """All candidates in the order of their files or rows.

    Each has example_id, topic, author, licence, query, thoughts and solution; a table's author and licence may be None.

    Raises:
        BadInput: a file or row lacks a part, or two candidates have the same id.
    """
    files = example_files(config)
    found = [read_example(path) for path in files] if files != [config.path] else list(_table_rows(config.path))
    twice = [name for name, times in Counter(each["example_id"] for each in found).items() if times > 1]
    if twice:
        raise BadInput(
            f"{config.path}: field example_id holds {twice[0]!r} more than once: make it unique or leave it out"
        )
    return found


def _table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The candidates of a table; ids are its `example_id`s or else the file's name and the row."""
    for row, record in enumerate(_json_lines(path) if path.suffix == ".jsonl" else _parquet_rows(path)):
        where = f"{path}, row {row}"
        for name in COLUMNS:
            value = record.get(name)
            if not isinstance(value, str) or not value.strip():
                found = "none" if value is None else "an empty text" if value == "" else type(value).__name__
                raise BadInput(f"{where}: field {name} must be a text that is not blank, found {found}")
        for name in ("example_id", "author", "licence"):
            if not isinstance(record.get(name), str | None):
                raise BadInput(f"{where}: field {name} must be a text or absent, found {type(record[name]).__name__}")
        yield {
            "example_id": record.get("example_id") or f"{path.stem}-{row:05d}",
            **{name: record[name].strip() for name in COLUMNS},
            "author": record.get("author"),
            "licence": record.get("licence"),
        }


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for row, line in enumerate(lines):
            try:
                record = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}, row {row}: no JSON ({error}); expected one object a line") from error
            if not isinstance(record, dict):
                raise BadInput(f"{path}, row {row}: expected a JSON object, found {type(record).__name__}")
            yield record


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: no whole Parquet file ({error}): write it again") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise BadInput(
            f"{path}: column {', '.join(missing)} is missing; expected {', '.join(COLUMNS)}, "
            f"found {', '.join(table.column_names) or 'none'}"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


# ---- judging one by its text


def malformed(example: dict[str, Any], config: ExamplesConfig) -> str | None:
    """Why thoughts and solution do not survive being written and read in the format; None where they do."""
    try:
        rendered = FORMATS[config.format].render(example["thoughts"], example["solution"])
    except ValueError as error:
        return f"cannot be written in the format {config.format}: {error}"
    parsed = FORMATS[config.format].parse(rendered)
    same = parsed.ok and (parsed.thoughts, parsed.solution) == (example["thoughts"], example["solution"])
    return None if same else f"thoughts and solution do not survive the format {config.format}"


def evidence(thoughts: str) -> dict[str, dict[str, Any]]:
    """Of each reasoning action shown, in the order of `ACTIONS`: the spans that show it, and the first in its context.

    A span is (start, end) in characters; the quote is cut at words, some 40 characters before and after.
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
    """What is missing of the reasoning actions; None where enough are shown."""
    shown = list(evidence(example["thoughts"]))
    if len(shown) >= config.min_actions:
        return None
    return (
        f"section Thoughts shows {len(shown)} of the four reasoning actions ({', '.join(shown) or 'none'}), expected "
        f"at least {config.min_actions}: say out loud where it analyses, plans, branches and reflects"
    )


def out_of_bounds(example: dict[str, Any], config: ExamplesConfig) -> str | None:
    """Whether the thoughts are too short or too long, in words between white space."""
    words = len(example["thoughts"].split())
    if config.min_words <= words <= config.max_words:
        return None
    return f"thoughts of {words} words, expected {config.min_words} to {config.max_words}"


def leaning(example: dict[str, Any], config: ExamplesConfig) -> str | None:
    """Where the solution refers to the thoughts (`LEANS`); None where it stands alone."""
    found = _LEANS.search(example["solution"])
    return f"the solution leans on the thoughts: {found[0]!r}" if found else None


RULES = {
    "malformed": malformed,
    "too few actions": too_few_actions,
    "length": out_of_bounds,
    "solution leans on the thoughts": leaning,
}


def judged(example: dict[str, Any], config: ExamplesConfig) -> dict[str, Any]:
    """The candidate with what its text shows: `evidence`, `words`, and `left` and `why` (None where all rules hold)."""
    faults = {name: why for name, rule in RULES.items() if (why := rule(example, config))}
    return {
        **example,
        "evidence": evidence(example["thoughts"]),
        "words": len(example["thoughts"].split()),
        "tokens": None,
        "reward": None,
        "left": next(iter(faults), None),
        "why": "; ".join(faults.values()) or None,
    }


# ---- choosing among those that serve


def leave(example: dict[str, Any], rule: str, why: str) -> None:
    """Put a candidate aside, with the rule's name and the reason in words."""
    example["left"], example["why"] = rule, why


def remaining(examples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The candidates that nothing speaks against so far."""
    return [each for each in examples if each["left"] is None]


def select(ranked: Sequence[dict[str, Any]], config: ExamplesConfig) -> None:
    """Leave all but the best `count`, at most `max_per_topic` of a topic; the best of each required topic goes first."""
    required = {topic.casefold() for topic in config.topics}
    first: dict[str, dict[str, Any]] = {}
    for each in ranked:
        if each["topic"].casefold() in required:
            first.setdefault(each["topic"].casefold(), each)
    ahead = {each["example_id"] for each in first.values()}
    taken: Counter[str] = Counter()
    for each in sorted(ranked, key=lambda each: each["example_id"] not in ahead):
        topic = each["topic"].casefold()
        if taken[topic] == config.max_per_topic:
            leave(each, "topic", f"topic {each['topic']} has its {config.max_per_topic} examples already")
        elif taken.total() == config.count:
            leave(each, "not needed", f"ranked behind the {config.count} taken")
        else:
            taken[topic] += 1


def enough(examples: Sequence[dict[str, Any]], config: ExamplesConfig) -> list[dict[str, Any]]:
    """The examples taken. Raises `BadInput` where they are too few, or a required topic has none."""
    taken = remaining(examples)
    lost = [topic for topic in config.topics if topic.casefold() not in {each["topic"].casefold() for each in taken}]
    if len(taken) == config.count and not lost:
        return taken
    wanted = f"{config.count} examples are needed, {len(taken)} of {len(examples)} candidates can be taken"
    if lost:
        wanted = f"no example of the topic {', '.join(lost)} (topics) is among those taken"
    reasons = "".join(f"\n- {each['example_id']}: {each['why']}" for each in examples if each["left"])
    raise BadInput(f"{config.path}: {wanted}: mend or add candidates, or change what is asked of them.{reasons}")
