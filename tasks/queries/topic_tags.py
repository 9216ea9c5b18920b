"""Topics of queries (BOLT section 3.1.2): an LLM tags each query with a topic of the edited list, or with `other`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from tasks.queries.ask import OUTSIDE_KEY, Question, judge, query_turns, squeezed, unjudged, with_labels
from tasks.queries.topics import EDITING, OTHER, PROPOSING, TopicsConfig, normal_name


def tag_names(topics: Sequence[str]) -> list[str]:
    """The names that a query can be tagged with: the topics, and `other` if it is not among them."""
    if normal_name(OTHER) in map(normal_name, topics):
        return list(topics)
    return [*topics, OTHER]


def tag_question(names: Sequence[str]) -> Question:
    """The question that asks for one of `names`."""
    return Question(
        constraint={"choice": list(names)},
        longest=max(len(name.encode()) for name in names),
        expected=f"one of {', '.join(names)}",
        read=partial(_read_tag, {squeezed(name): name for name in names}),
    )


def _read_tag(names: Mapping[str, str], answer: str) -> list[str] | None:
    """The name in an answer; None if it is not one of `names`, given by their form without white space."""
    found = names.get(squeezed(answer))
    return None if found is None else [found]


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
    """Ask for the topic of each query of a shard, one request per query without a topic."""
    names = tag_names([row["name"] for row in read_rows(store, topics)])
    listed = "\n".join(f"- {name}" for name in names)
    untagged = unjudged(store, queries, "topic", shard, shards)
    turns = partial(query_turns, config.tag_template, config.shown_tokens, untagged, topics=listed)
    return judge(plan, store, config=config, model=model, servers=servers, question=tag_question(names), turns=turns)


@step
def tag_queries(plan: Plan, store: Store, *, queries: Ref, judgements: Sequence[Ref]) -> Ref:
    """Write the queries with their `topic`.

    A query whose source states its topic keeps it. If the judge's answer could not be read, the query is dropped.
    """
    funnel: Counter[str] = Counter()
    topics: Counter[str] = Counter()
    kept = tagged(with_labels(store, queries, "topic", judgements), funnel, topics)

    def counts() -> dict[str, Any]:
        return {**funnel, "topics": dict(topics.most_common())}

    return write_table(store, plan.step, plan.key, QUERIES, batched(kept), plan.provenance, counts=counts)


def tagged(
    judged: Iterable[tuple[dict[str, Any], list[str] | None]], funnel: Counter[str], topics: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The tagged queries, counted in `funnel` and, by topic, in `topics`.

    `judged`: queries with the judge's tag, none if the source states one; None if the answer could not be read.
    """
    for query, labels in judged:
        funnel["read"] += 1
        if labels is None:
            funnel["dropped: the judge's answer on the topic could not be read"] += 1
            continue
        found = {**query, "topic": labels[0]} if labels else query
        funnel["kept"] += 1
        topics[found["topic"]] += 1
        yield found
