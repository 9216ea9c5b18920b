"""The searches: each is a generator that asks for steps, solutions and scores, and gets them.

The budget is in sampled tokens. It is looked at before each round of requests, so that the last round may exceed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.search.select import ChildSelection, GlobalSelection, Selection
from tasks.search.tree import NextSteps, Node, Result, Sampled, Score, Search, Solve, Tree

Strategy: TypeAlias = Literal["mctsg", "mcts", "beam", "sampling"]


FRUITLESS = 3
"""Attempts to add steps to a node, all of them without a new one, after which it is left alone."""


class SearchConfig(BaseModel):
    """How a problem is searched. STILL-1 publishes none of these figures; all are this project's choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy = Field(
        "mctsg",
        description="`mctsg`: tree search that selects among all nodes (STILL-1). `mcts`: child by child. `beam`: the "
        "best partial solutions, level by level. `sampling`: independent solutions.",
    )
    tokens: int = Field(16_384, ge=1, description="Tokens to sample per problem; the last round may exceed it.")
    branches: int = Field(4, ge=1, description="Next steps that are sampled at once, or solutions with `sampling`.")
    width: int = Field(4, ge=1, description="`beam`: number of partial solutions that are kept.")
    exploration: float = Field(0.5, ge=0, description="`mctsg`, `mcts`: weight of the bonus for little-explored nodes.")
    max_steps: int = Field(64, ge=1, description="Maximum number of steps; a longer partial solution is given up.")
    agree: int | None = Field(
        None,
        ge=2,
        description="End a problem early once this many solutions have the same answer, and the next most frequent "
        "answer has fewer than half as many. Null: never.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="End a problem early once this many solutions in a row have failed to beat the best reward so far. "
        "Null: never.",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        plain = {name: type(self).model_fields[name].default for name in ("width", "exploration", "max_steps")}
        if self.strategy != "beam" and self.width != plain["width"]:
            raise ValueError(f"width is set, but strategy {self.strategy} does not use it: leave it out")
        if self.strategy in ("beam", "sampling") and self.exploration != plain["exploration"]:
            raise ValueError(f"exploration is set, but strategy {self.strategy} does not use it: leave it out")
        if self.strategy == "sampling" and self.max_steps != plain["max_steps"]:
            raise ValueError("max_steps is set, but strategy sampling does not use it: leave it out")
        return self


def search(tree: Tree, config: SearchConfig, *, scored: bool = True) -> Search:
    """Search a problem as configured, until its budget is spent or nothing is left to expand.

    `scored`: whether the reward model is asked about finished solutions; only `sampling` can do without.
    """
    if config.strategy == "sampling":
        return sampling(tree, config, scored=scored)
    if config.strategy == "beam":
        return beam(tree, config)
    rule = GlobalSelection if config.strategy == "mctsg" else ChildSelection
    return tree_search(tree, config, rule(tree, config.exploration))


def sampling(tree: Tree, config: SearchConfig, *, scored: bool) -> Search:
    """Independent solutions, `branches` at a time."""
    while tree.tokens < config.tokens:
        (found,) = yield [Solve(0, config.branches)]
        solutions = sampled(found)
        if not solutions:  # refused, and would be again
            return
        tree.tokens += sum(each.tokens for each in solutions)
        yield from kept(tree, [(tree.nodes[0], each.text) for each in solutions if each.ended], scored=scored)


def tree_search(tree: Tree, config: SearchConfig, selection: Selection) -> Search:
    """Monte Carlo tree search: select a node, add next steps, solve from each, score, and add the rewards up.

    An attempt that is cut off, or that the server refuses, counts as one without reward.
    """
    while tree.tokens < config.tokens and (node := selection.node()) is not None:
        (steps,) = yield [NextSteps(node.number, config.branches)]
        children = grown(tree, config, node, steps)
        ends: list[tuple[Node, str]] = [(child, "") for child in children if child.ended]
        going = [child for child in children if not child.ended]
        results = (yield [Solve(child.number, 1) for child in going]) if going else []
        for child, result in zip(going, results, strict=True):
            found = sampled(result)
            tree.tokens += sum(each.tokens for each in found)
            whole = [(child, each.text) for each in found if each.ended]
            ends += whole
            if not whole:
                tree.lost(child.number)
        yield from kept(tree, ends)
        selection.updated([node, *children])


def beam(tree: Tree, config: SearchConfig) -> Search:
    """Level by level, the `width` partial solutions that the reward model likes best are continued."""
    level = [tree.nodes[0]]
    while level and tree.tokens < config.tokens:
        results = yield [NextSteps(node.number, config.branches) for node in level]
        children: list[Node] = []
        for node, result in zip(level, results, strict=True):
            children += grown(tree, config, node, result)
        yield from kept(tree, [(child, "") for child in children if child.ended])
        going = [child for child in children if tree.expandable(child.number)]
        rewards = (yield [Score(tree.text(child.number)) for child in going]) if going else []
        ranked = [
            (-value, child.number)
            for child, reward in zip(going, rewards, strict=True)
            if (value := as_reward(reward)) is not None
        ]
        level = [tree.nodes[number] for _, number in sorted(ranked)[: config.width]]


def kept(tree: Tree, ends: Sequence[tuple[Node, str]], *, scored: bool = True) -> Search:
    """Score finished solutions, each a node and what follows it, and keep them."""
    texts = [tree.text(node.number) + rest for node, rest in ends]
    rewards = (yield [Score(text) for text in texts]) if scored and texts else [None] * len(ends)
    for (node, rest), text, reward in zip(ends, texts, rewards, strict=True):
        tree.found(node.number, text, rest, as_reward(reward))
        if scored and as_reward(reward) is None:
            tree.lost(node.number)


def grown(tree: Tree, config: SearchConfig, node: Node, result: Result) -> list[Node]:
    """The next steps that were sampled after a node, as new nodes; the node is closed after `FRUITLESS` attempts
    without any.

    Steps with the same text are one, of which one that ends the solution comes first. A step that repeats the one
    before it leads nowhere, and is left out. A blank one is the end of the solution at the node, if it ended.
    """
    steps = sampled(result)
    tree.tokens += sum(each.tokens for each in steps)
    known = {tree.nodes[child].text.strip() for child in node.children} | {node.text.strip()}
    different: dict[str, Sampled] = {}
    for each in sorted(steps, key=lambda each: not each.ended):
        text = each.text.strip()
        if text not in known and (text or each.ended):
            different.setdefault(text, each)
    children = [tree.add(node.number, each) for each in different.values()]
    node.fruitless = 0 if children else node.fruitless + 1
    if node.fruitless >= FRUITLESS or not steps:
        tree.close(node.number)
    for child in children:
        if child.depth >= config.max_steps:
            tree.close(child.number)
    return children


def sampled(result: Result) -> Sequence[Sampled]:
    """The texts of a result; none if the request was refused."""
    return result if isinstance(result, list) else []


def as_reward(result: Result) -> float | None:
    """The reward of a result; None if the request was refused."""
    return result if isinstance(result, float) else None
