"""The answer of each searched problem as a response, so that it is graded like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from cot_formats.responses import parse_response
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import RESPONSES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import count_tokens, load_tokenizer
from tasks.search.vote import Vote, chosen


def solution_text(rows: Sequence[dict[str, Any]], solution: dict[str, Any]) -> str:
    """A solution's whole text. `rows`: those of its problem, by node number."""
    parts, parent = [solution["text"]], solution["parent"]
    while parent is not None:
        parts.append(rows[parent]["text"])
        parent = rows[parent]["parent"]
    return "".join(reversed(parts))


def chosen_solution(rows: Sequence[dict[str, Any]], how: Vote) -> dict[str, Any] | None:
    """The row of the solution that is the answer to a problem; None if there is no solution."""
    solutions = [row for row in rows if row["solution"]]
    place = chosen([row["reward"] for row in solutions], [row["answer"] for row in solutions], how)
    return None if place is None else solutions[place]


def as_response(query_id: str, sample: int, text: str, tokens: int) -> dict[str, Any]:
    """A solution as a row of `responses`. `tokens`: its length."""
    return {
        "query_id": query_id,
        "sample": sample,
        "example_ids": [],
        "seed": None,
        "text": text,
        **parse_response(text, "plain"),
        "finish_reason": "stop",
        "prompt_tokens": 0,
        "completion_tokens": tokens,
        "thought_tokens": 0,
        "solution_tokens": tokens,
    }


def trees(store: Store, searched: Sequence[Ref]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of each tree by query id."""
    stream = chain.from_iterable(read_rows(store, shard) for shard in searched)
    for query_id, group in groupby(stream, key=lambda row: str(row["query_id"])):
        yield query_id, list(group)


@step
def searched_answers(
    plan: Plan, store: Store, *, searched: Sequence[Ref], vote: Vote, policy: Ref, servers: Servers
) -> Ref:
    """Write the table `responses` of the chosen solutions, one of each problem; an empty one if there is none.

    `completion_tokens` are all tokens that were sampled for the problem.
    """
    tokenizer = load_tokenizer(fetch_model(store, policy, servers.work_dir))
    counts = {"problems": 0, "without a solution": 0}

    def rows() -> Iterator[dict[str, Any]]:
        for query_id, held in trees(store, searched):
            best = chosen_solution(held, vote)
            text = solution_text(held, best) if best else ""
            counts["problems"] += 1
            counts["without a solution"] += best is None
            tokens = count_tokens(tokenizer, text)
            yield {**as_response(query_id, 0, text, tokens), "completion_tokens": held[0]["tokens"]}

    return write_table(store, plan.step, plan.key, RESPONSES, batched(rows()), plan.provenance, counts=lambda: counts)
