"""Training data from search (STILL-1): the best path of each tree, and right against wrong branches of one path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import LONGCOT, PAIRS, RESPONSES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import count_tokens, load_tokenizer, prompt_text
from tasks.mutual.adapt import StepFormat, in_steps
from tasks.mutual.pair import OutcomePairConfig
from tasks.responses.perplexity import name_of
from tasks.search.answers import as_response, solution_text, trees

Rows = list[dict[str, Any]]


@step
def searched_solutions(plan: Plan, store: Store, *, searched: Sequence[Ref], policy: Ref, servers: Servers) -> Ref:
    """Write the table `responses` of all solutions that a search found; a sample's number is its node's.

    A problem without any has an empty response.
    """
    tokenizer = load_tokenizer(fetch_model(store, policy, servers.work_dir))

    def rows() -> Iterator[dict[str, Any]]:
        for query_id, held in trees(store, searched):
            found = [row for row in held if row["solution"]]
            for row in found:
                text = solution_text(held, row)
                yield as_response(query_id, row["node"], text, count_tokens(tokenizer, text))
            if not found:
                yield as_response(query_id, 0, "", 0)

    return write_table(store, plan.step, plan.key, RESPONSES, batched(rows()), plan.provenance)


def verified(store: Store, scores: Ref) -> dict[str, bool]:
    """Whether each solution is right, by its name."""
    rows = read_rows(store, scores, ["query_id", "sample", "verified"])
    return {name_of(row): row["verified"] for row in rows if row["verified"] is not None}


def solved(rows: Rows, right: Mapping[str, bool]) -> Rows:
    """The solutions of a tree that have a reward, each with its `right` and its whole `text`; the best first."""
    found = [
        {**row, "right": right[name], "text": solution_text(rows, row)}
        for row in rows
        if row["solution"] and row["reward"] is not None and (name := name_of({**row, "sample": row["node"]})) in right
    ]
    return sorted(found, key=lambda row: (-row["reward"], row["node"]))


@step
def best_paths(
    plan: Plan, store: Store, *, format: StepFormat, searched: Sequence[Ref], scores: Ref, queries: Ref
) -> Ref:
    """Write the table `longcot` of the right solution in steps of each tree that the reward model likes best; it is
    empty if there is none."""
    texts = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    right = verified(store, scores)
    funnel: Counter[str] = Counter()

    def best_rows() -> Iterator[dict[str, Any]]:
        for query_id, held in trees(store, searched):
            found = [row for row in solved(held, right) if row["right"]]
            best = next((row for row in found if format.steps.parse(row["text"].strip()).ok), None)
            if best is None:
                funnel["dropped: no right solution in the step format" if found else "dropped: no right solution"] += 1
                continue
            plain = {"query_id": query_id, "sample": best["node"], "query": texts[query_id]}
            yield {**plain, "solution": best["text"], "reward": best["reward"]}

    def counts() -> dict[str, int]:
        return {"read": funnel.total(), **funnel}

    rows = batched(in_steps(format, best_rows(), funnel))
    return write_table(store, plan.step, plan.key, LONGCOT, rows, plan.provenance, counts=counts)


def siblings(rows: Rows, found: Rows) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The right and the wrong solution that part latest, and are likeliest to be right by the reward model.

    Args:
        rows: a tree, by node number.
        found: its solutions that may be used, the best first, each with `right`.

    Of the steps that both a right and a wrong solution go through, the deepest one is taken (the earliest among
    equals), and of its right and wrong solutions the best ones. None if there is no such step.
    """
    depth = dict[int, int]()
    best: dict[tuple[int, bool], dict[str, Any]] = {}
    for row in rows:
        depth[row["node"]] = 0 if row["parent"] is None else depth[row["parent"]] + 1
    for row in found:
        at: int | None = row["parent"]
        while at is not None:
            best.setdefault((at, row["right"]), row)
            at = rows[at]["parent"]
    both = [at for at, right in best if right and (at, False) in best]
    if not both:
        return None
    deepest = max(both, key=lambda at: (depth[at], -at))
    return best[deepest, True], best[deepest, False]


@step
def pair_siblings(
    plan: Plan,
    store: Store,
    *,
    config: OutcomePairConfig,
    format: StepFormat,
    iteration: int,
    searched: Sequence[Ref],
    scores: Ref,
    queries: Ref,
    model: Ref,
    servers: Servers,
) -> Ref:
    """Write the table `pairs` of the right and the wrong solution of each tree that part latest; there may be none.
    The right one is in the step format.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    texts = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
    right = verified(store, scores)
    funnel: Counter[str] = Counter()

    def usable(row: dict[str, Any]) -> bool:
        if count_tokens(tokenizer, row["text"]) > config.max_tokens:
            return False
        return not row["right"] or (
            row["reward"] > config.min_probability and format.steps.parse(row["text"].strip()).ok
        )

    def rows() -> Iterator[dict[str, Any]]:
        for query_id, held in trees(store, searched):
            funnel["queries"] += 1
            found = siblings(held, [row for row in solved(held, right) if usable(row)])
            if found is None:
                funnel["dropped: no right solution beside a wrong one"] += 1
                continue
            funnel["kept"] += 1
            made = {"query_id": query_id, "iteration": iteration}
            made["prompt"] = prompt_text(tokenizer, [{"role": "user", "content": texts[query_id]}])
            for side, row in zip(("chosen", "rejected"), found, strict=True):
                text = row["text"].rstrip()  # an end token follows, and not a delimiter before it
                made |= {side: text, f"{side}_sample": row["node"], f"{side}_score": row["reward"]}
                made[f"{side}_tokens"] = count_tokens(tokenizer, text)
            yield made

    return write_table(store, plan.step, plan.key, PAIRS, batched(rows()), plan.provenance, counts=lambda: dict(funnel))
