"""Difficulty of queries (BOLT section 3.1.2), judged by an LLM with seven yes/no criteria.

The criteria are those by which Arena-Hard's prompts were selected (BenchBuilder); the wording of the question is this
project's own. A query that meets fewer than five of them is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, write_table
from tasks.queries.ask import OUTSIDE_KEY, JudgeConfig, Question, judge, query_turns, squeezed, unjudged, with_labels

CRITERIA = (
    "specificity",
    "domain knowledge",
    "complexity",
    "problem-solving",
    "creativity",
    "technical accuracy",
    "real-world application",
)
_NUMBERS = range(1, len(CRITERIA) + 1)
_SQUEEZED = re.compile("".join(f"{n}:(yes|no)" for n in _NUMBERS))


class RateConfig(JudgeConfig):
    """How the difficulty of queries is judged."""

    template: Path = Field(
        Path("prompts/judge_difficulty.md"),
        description="Template of the question, with {query}. It lists the seven criteria in order and asks for lines "
        "like `1: yes`.",
    )
    min_difficulty: int = Field(5, ge=0, le=7, description="Minimum number of the 7 criteria met (BOLT: 5).")


def read_criteria(answer: str) -> list[str] | None:
    """The criteria that are met according to an answer, in order; None if it is not seven numbered verdicts."""
    found = _SQUEEZED.fullmatch(squeezed(answer))
    return [name for name, verdict in zip(CRITERIA, found.groups(), strict=True) if verdict == "yes"] if found else None


# Spaces and line ends are optional, so that a tokenizer that has neither can spell an answer too.
DIFFICULTY = Question(
    constraint={"regex": r"[ \n]?".join(f"{n} ?: ?(yes|no)" for n in _NUMBERS)},
    longest=len("\n".join(f"{n} : yes" for n in _NUMBERS)),
    expected=f"yes or no for the {len(CRITERIA)} criteria, '1: yes' and so on",
    read=read_criteria,
)


@step(outside_key=(*OUTSIDE_KEY, "config.min_difficulty"), serves={"model": "policy"})
def judge_difficulty(
    plan: Plan,
    store: Store,
    *,
    config: RateConfig,
    queries: Ref,
    model: Ref,
    servers: Servers,
    shard: int = 0,
    shards: int = 1,
) -> Ref:
    """Ask which of the seven criteria each query of a shard meets, one request per query of unknown difficulty."""
    unrated = unjudged(store, queries, "difficulty", shard, shards)
    turns = partial(query_turns, config.template, config.shown_tokens, unrated)
    return judge(plan, store, config=config, model=model, servers=servers, question=DIFFICULTY, turns=turns)


@step
def rate_queries(plan: Plan, store: Store, *, min_difficulty: int, queries: Ref, judgements: Sequence[Ref]) -> Ref:
    """Write the queries that are hard enough, with `criteria` (those met) and `difficulty` (their number).

    A query whose source states its difficulty keeps it. If the judge's answer could not be read, the query is dropped.
    """
    funnel: Counter[str] = Counter()
    kept = hard_enough(with_labels(store, queries, "difficulty", judgements), min_difficulty, funnel)
    return write_table(store, plan.step, plan.key, QUERIES, batched(kept), plan.provenance, counts=lambda: dict(funnel))


def hard_enough(
    judged: Iterable[tuple[dict[str, Any], list[str] | None]], min_difficulty: int, funnel: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rated queries of at least `min_difficulty`, counted in `funnel`.

    `judged`: queries with the criteria that they meet; None if the judge's answer could not be read.
    """
    for query, met in judged:
        funnel["read"] += 1
        if met is None:
            funnel["dropped: the judge's answer on difficulty could not be read"] += 1
            continue
        rated = {**query, "criteria": met, "difficulty": len(met)} if query["difficulty"] is None else query
        easy = rated["difficulty"] < min_difficulty
        funnel["dropped: too easy" if easy else "kept"] += 1
        if not easy:
            yield rated
