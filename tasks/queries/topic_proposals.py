"""Topics of queries (BOLT section 3.1.2): a list of topics that an LLM proposes from a sample of the queries."""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import TOPICS
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.templates import filled
from tasks.queries.ask import OUTSIDE_KEY, Question, delimited, judge, squeezed, unjudged
from tasks.queries.draw import order_key
from tasks.queries.topics import EDITING, OTHER, TAGGING, TopicsConfig, normal_name

LONGEST_NAME = 40  # characters of a proposed name
_NAME = rf"[A-Za-z0-9][A-Za-z0-9 &/+#'.-]{{0,{LONGEST_NAME - 1}}}"


def read_names(answer: str) -> list[str] | None:
    """The names in a comma-separated list; None if one is empty, too long, or has characters that are not allowed."""
    names = [" ".join(piece.split()) for piece in answer.split(",")]
    # Decoding may insert spaces into a name, which do not count towards its length.
    if not all(re.fullmatch(_NAME, squeezed(name)) for name in names):
        return None
    return names


def proposal_question(names: int) -> Question:
    """The question that asks for up to `names` topics."""
    return Question(
        constraint={"regex": f"{_NAME}(, ?{_NAME}){{0,{names - 1}}}"},
        longest=names * (LONGEST_NAME + 2),
        expected="names of topics separated by commas",
        read=read_names,
    )


@step(outside_key=(*OUTSIDE_KEY, *EDITING, *TAGGING), serves={"model": "policy"})
def propose_topics(
    plan: Plan, store: Store, *, config: TopicsConfig, queries: Ref, model: Ref, servers: Servers
) -> Ref:
    """Ask for topics of a seeded sample of the queries without a topic, several queries per request."""
    untagged = unjudged(store, queries, "topic", 0, 1)
    drawn = heapq.nsmallest(config.sample, untagged, key=lambda query: order_key(config.seed, query["query_id"]))
    question = proposal_question(config.names_per_proposal)
    turns = partial(proposal_turns, config, drawn)
    return judge(plan, store, config=config, model=model, servers=servers, question=question, turns=turns)


def proposal_turns(
    config: TopicsConfig, queries: Sequence[dict[str, Any]], tokenizer: Any
) -> Iterator[tuple[str, str]]:
    """The requests for topics of `queries`: an id and the user turn, for each group of queries."""
    for number, shown in enumerate(batched(queries, config.queries_per_proposal)):
        texts = "\n\n".join(delimited(query["query"], tokenizer, config.proposal_tokens) for query in shown)
        turn = filled(config.propose_template, queries=texts, most=str(config.names_per_proposal))
        yield f"proposal-{number:05d}", turn


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
    """Write the table of the topics that the most proposals name. Raises `BadInput` if there are fewer than two."""
    answers = [row["labels"] for row in read_rows(store, proposals) if row["labels"]]
    topics = merged(answers)
    if len(topics) < 2:
        raise BadInput(
            f"{plan.step}: {len(answers)} proposals name {len(topics)} topics, expected at least 2: "
            "write the list yourself and give it as topics.file"
        )
    counts = {"proposals": len(answers), "topics": len(topics), "kept": min(len(topics), max_topics)}
    return write_table(store, plan.step, plan.key, TOPICS, [topics[:max_topics]], plan.provenance, counts=counts)
