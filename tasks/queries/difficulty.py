"""Difficulty of queries (BOLT section 3.1.2): an LLM judges seven yes/no criteria, those that Arena-Hard's prompts were
picked by (BenchBuilder); a query that meets fewer than five of them is dropped. The wording of the question is ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, write_table
from infra.text.templates import filled
from tasks.queries.ask import OUTSIDE_KEY, JudgeConfig, Question, judge, quoted, squeezed, unjudged, with_labels

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
        description="Question with {query} that lists the seven criteria in order and asks for lines like `1: yes`.",
    )
    min_difficulty: int = Field(5, ge=0, le=7, description="Fewest of the 7 criteria that a query meets (BOLT: 5).")


def read_criteria(answer: str) -> list[str] | None:
    """The criteria that an answer says are met, in their order; None where it is not seven numbered verdicts."""
    found = _SQUEEZED.fullmatch(squeezed(answer))
    return [name for name, verdict in zip(CRITERIA, found.groups(), strict=True) if verdict == "yes"] if found else None


# Blanks and line ends are free, so that a tokenizer that has none of them can spell the form as well.
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
    """Ask for the seven criteria of each query of a shard that states no difficulty, one request a query."""

    def turns(tokenizer: Any) -> Iterator[tuple[str, str]]:
        for query in unjudged(store, queries, "difficulty", shard, shards):
            shown = quoted(query["query"], tokenizer, config.shown_tokens)
            yield query["query_id"], filled(config.template, query=shown)

    return judge(plan, store, config=config, model=model, servers=servers, question=DIFFICULTY, turns=turns)


@step
def rate_queries(plan: Plan, store: Store, *, min_difficulty: int, queries: Ref, judgements: Sequence[Ref]) -> Ref:
    """Write the queries with `criteria` (those met) and `difficulty` (their number) that are hard enough.

    A query that stated its difficulty keeps it. One whose judgement could not be read is dropped, never guessed.
    """
    funnel: Counter[str] = Counter()

    def kept() -> Iterator[dict[str, Any]]:
        for query, met in with_labels(store, queries, "difficulty", judgements):
            funnel["read"] += 1
            rated = query
            if query["difficulty"] is None and met is not None:
                rated = {**query, "criteria": met, "difficulty": len(met)}
            if met is None:
                funnel["dropped: the judge's answer on difficulty could not be read"] += 1
            elif rated["difficulty"] < min_difficulty:
                funnel["dropped: too easy"] += 1
            else:
                funnel["kept"] += 1
                yield rated

    return write_table(
        store, plan.step, plan.key, QUERIES, batched(kept()), plan.provenance, counts=lambda: dict(funnel)
    )
