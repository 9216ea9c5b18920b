"""Topics of queries (BOLT section 3.1.2): an LLM proposes a list from a sample, a person edits it, an LLM tags with it.

A tag is one name of the edited list, or `other`.
"""

from __future__ import annotations

import hashlib
import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import Field

from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES, TOPICS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.templates import filled
from tasks.queries.ask import OUTSIDE_KEY, JudgeConfig, Question, judge, quoted, squeezed, unjudged, with_labels

OTHER = "other"
LONGEST_NAME = 40  # characters of a proposed name
_NAME = rf"[A-Za-z0-9][A-Za-z0-9 &/+#'.-]{{0,{LONGEST_NAME - 1}}}"


class TopicsConfig(JudgeConfig):
    """How topics are proposed, edited and given to queries."""

    file: Path | None = Field(
        None,
        description="Edited YAML list of topics; none has a judge propose one and waits for a person to edit it in the "
        "Prefect UI.",
    )
    wait_hours: float = Field(
        24, gt=0, description="Hours to wait for that person; then the run fails, naming the list to edit as a file."
    )
    propose_template: Path = Field(
        Path("prompts/propose_topics.md"), description="Question with {queries} and {most} that asks for topics."
    )
    tag_template: Path = Field(
        Path("prompts/tag_topic.md"), description="Question with {topics} and {query} that asks for one of them."
    )
    sample: int = Field(
        1000, ge=1, description="Queries that topics are proposed from, drawn by a seeded hash (this project's choice)."
    )
    queries_per_proposal: int = Field(20, ge=1, description="Queries shown in one request for topics.")
    proposal_tokens: int = Field(150, ge=1, description="Tokens of each that are shown there, from its beginning.")
    names_per_proposal: int = Field(10, ge=2, description="Topics that one request may name.")
    max_topics: int = Field(30, ge=2, description="Topics shown to the person: those named by most requests.")
    seed: int = Field(0, description="Seed of the draw of the sample.")


EDITING = ("config.file", "config.wait_hours", "config.max_topics")
PROPOSING = tuple(
    f"config.{name}"
    for name in ("propose_template", "sample", "queries_per_proposal", "proposal_tokens", "names_per_proposal", "seed")
)
TAGGING = ("config.tag_template", "config.shown_tokens")
"""Settings by what they are for: each step's key holds its own."""


def normal_name(name: str) -> str:
    """What makes two names the same: letters, digits, + and # alone, case folded."""
    return re.sub(r"(?![+#])[\W_]", "", unicodedata.normalize("NFKC", name).casefold())


# ---- proposing


def read_names(answer: str) -> list[str] | None:
    """The names of a list with commas; None where an entry is too long, has other characters, or there are none."""
    names = [" ".join(piece.split()) for piece in answer.split(",")]
    # Decoding may put blanks into a name, which do not count against its length.
    if not all(re.fullmatch(_NAME, squeezed(name)) for name in names):
        return None
    return names


def proposal_question(names: int) -> Question:
    """Asks for up to `names` topics."""
    return Question(
        constraint={"regex": f"{_NAME}(, ?{_NAME}){{0,{names - 1}}}"},
        longest=names * (LONGEST_NAME + 2),
        expected="names of topics divided by commas",
        read=read_names,
    )


@step(outside_key=(*OUTSIDE_KEY, *EDITING, *TAGGING), serves={"model": "policy"})
def propose_topics(
    plan: Plan, store: Store, *, config: TopicsConfig, queries: Ref, model: Ref, servers: Servers
) -> Ref:
    """Ask for topics of a seeded sample of the queries that state none, some queries a request."""

    def turns(tokenizer: Any) -> Iterator[tuple[str, str]]:
        def rank(query: dict[str, Any]) -> bytes:
            return hashlib.sha256(f"{config.seed}:{query['query_id']}".encode()).digest()

        drawn = heapq.nsmallest(config.sample, unjudged(store, queries, "topic", 0, 1), key=rank)
        for number, shown in enumerate(batched(drawn, config.queries_per_proposal)):
            texts = "\n\n".join(quoted(query["query"], tokenizer, config.proposal_tokens) for query in shown)
            turn = filled(config.propose_template, queries=texts, most=str(config.names_per_proposal))
            yield f"proposal-{number:05d}", turn

    question = proposal_question(config.names_per_proposal)
    return judge(plan, store, config=config, model=model, servers=servers, question=question, turns=turns)


def merged(proposals: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Each topic once, in its most frequent spelling, with the number of proposals that name it, most named first."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for names in proposals:
        for identity, name in {normal_name(name): name for name in reversed(names)}.items():
            if identity not in ("", normal_name(OTHER)):
                spellings[identity][name] += 1
    topics = [
        {"name": min(found, key=lambda name: (-found[name], name)), "proposals": found.total()}
        for found in spellings.values()
    ]
    return sorted(topics, key=lambda topic: (-topic["proposals"], topic["name"]))


@step
def merge_proposals(plan: Plan, store: Store, *, max_topics: int, proposals: Ref) -> Ref:
    """Write the table of the topics that most proposals name. Raises `BadInput` where there are fewer than two."""
    answers = [row["labels"] for row in read_rows(store, proposals) if row["labels"]]
    topics = merged(answers)
    if len(topics) < 2:
        raise BadInput(
            f"{plan.step}: {len(answers)} proposals name {len(topics)} topics, expected at least 2: "
            "write the list yourself and give it as topics.file"
        )
    counts = {"proposals": len(answers), "topics": len(topics), "kept": min(len(topics), max_topics)}
    return write_table(store, plan.step, plan.key, TOPICS, [topics[:max_topics]], plan.provenance, counts=counts)


def as_yaml(topics: Sequence[dict[str, Any]]) -> str:
    """The proposed topics as a file for a person to edit."""
    head = "# Proposed topics, most named first. Delete, rename, merge, add; then give this file as topics.file.\n"
    return head + yaml.safe_dump([topic["name"] for topic in topics], allow_unicode=True, sort_keys=False)


# ---- what a person made of it


def checked_topics(names: Sequence[object], source: str, places: Sequence[str]) -> list[str]:
    """A person's list, white space collapsed; `source` and the entries' `places` in it are named in errors.

    Raises:
        BadInput: an entry is no text, empty or not printable, two are the same but for case, blanks and punctuation, or
            there are fewer than two.
    """
    seen: dict[str, str] = {}
    topics = []
    for name, entry in zip(names, places, strict=True):
        place = f"{source}, {entry}"
        if not isinstance(name, str):
            raise BadInput(f"{place}: a topic must be a text, found {type(name).__name__} {name!r}: put it in quotes")
        plain, identity = " ".join(name.split()), normal_name(name)
        if "\\" in plain or not plain.isprintable():  # vLLM would take it for an escape in its grammar
            raise BadInput(f"{place}: a topic must have no backslash and no control character, found {name!r}")
        if not identity:
            raise BadInput(f"{place}: a topic must have letters or digits, found {name!r}: delete the entry or name it")
        if identity in seen:
            raise BadInput(f"{place}: topic {name!r} is a double of {seen[identity]}: delete one of the two")
        seen[identity] = f"{name!r} ({place})"
        topics.append(plain)
    if len(topics) < 2:
        raise BadInput(f"{source}: expected at least 2 topics, found {len(topics)}: add some")
    return topics


def read_topics(path: Path) -> list[str]:
    """The topics of an edited YAML file. Raises `BadInput` naming file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        names, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise BadInput(f"topics file {path} does not exist") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: no YAML in UTF-8 ({error}); expected a list, one '- topic' a line") from error
    if not isinstance(names, list):
        raise BadInput(f"{path}: expected a list of topics, one '- topic' a line, found {type(names).__name__}")
    assert isinstance(tree, yaml.SequenceNode)  # as its value is a list
    return checked_topics(names, str(path), [f"line {node.start_mark.line + 1}" for node in tree.value])


@step
def keep_topics(plan: Plan, store: Store, *, names: Sequence[str]) -> Ref:
    """Write the table of the topics that a file names."""
    return _write_topics(plan, store, names)


@step(outside_key=("names",))
def keep_edited_topics(plan: Plan, store: Store, *, proposed: Ref, names: Sequence[str]) -> Ref:
    """Write the table of the topics that a person made of the proposal, who is asked once for each proposal."""
    return _write_topics(plan, store, names)


def _write_topics(plan: Plan, store: Store, names: Sequence[str]) -> Ref:
    rows = [{"name": name, "proposals": None} for name in names]
    return write_table(store, plan.step, plan.key, TOPICS, [rows], plan.provenance)


# ---- tagging


def tag_question(names: Sequence[str]) -> Question:
    """Asks for one of `names`."""
    by_spelling = {squeezed(name): name for name in names}

    def read(answer: str) -> list[str] | None:
        found = by_spelling.get(squeezed(answer))
        return None if found is None else [found]

    longest = max(len(name.encode()) for name in names)
    return Question(
        constraint={"choice": list(names)}, longest=longest, expected=f"one of {', '.join(names)}", read=read
    )


@step(outside_key=(*OUTSIDE_KEY, *EDITING, *PROPOSING), serves={"model": "policy"})
def judge_topic(
    plan: Plan,
    store: Store,
    *,
    config: TopicsConfig,
    queries: Ref,
    topics: Ref,
    model: Ref,
    servers: Servers,
    shard: int = 0,
    shards: int = 1,
) -> Ref:
    """Ask for the topic of each query of a shard that states none, one request a query."""
    names = [row["name"] for row in read_rows(store, topics)]
    if normal_name(OTHER) not in map(normal_name, names):
        names.append(OTHER)
    listed = "\n".join(f"- {name}" for name in names)

    def turns(tokenizer: Any) -> Iterator[tuple[str, str]]:
        for query in unjudged(store, queries, "topic", shard, shards):
            shown = quoted(query["query"], tokenizer, config.shown_tokens)
            yield query["query_id"], filled(config.tag_template, topics=listed, query=shown)

    return judge(plan, store, config=config, model=model, servers=servers, question=tag_question(names), turns=turns)


@step
def tag_queries(plan: Plan, store: Store, *, queries: Ref, judgements: Sequence[Ref]) -> Ref:
    """Write the queries with their `topic`. One that stated it keeps it; an answer that was unread drops its query."""
    funnel: Counter[str] = Counter()
    topics: Counter[str] = Counter()

    def kept() -> Iterator[dict[str, Any]]:
        for query, labels in with_labels(store, queries, "topic", judgements):
            funnel["read"] += 1
            if labels is None:
                funnel["dropped: the judge's answer on the topic could not be read"] += 1
                continue
            tagged = {**query, "topic": labels[0]} if labels else query
            funnel["kept"] += 1
            topics[tagged["topic"]] += 1
            yield tagged

    def counts() -> dict[str, Any]:
        return {**funnel, "topics": dict(topics.most_common())}

    return write_table(store, plan.step, plan.key, QUERIES, batched(kept()), plan.provenance, counts=counts)
