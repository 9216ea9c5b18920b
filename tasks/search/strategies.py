"""The searches: each is a generator that asks for steps, solutions and scores, and gets them.

The budget is in sampled tokens. It is looked at before each round of requests, so that the last round may exceed it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.search.select import ChildSelection, GlobalSelection, Selection
from tasks.search.tree import Ask, NextSteps, Node, Result, Sampled, Score, Search, Solve, Tree

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
    answer: Literal["best", "majority", "weighted"] = Field(
        "weighted",
        description="Which of the solutions found is the answer. `best`: the one with the highest reward. `majority`: "
        "one with the most frequent answer (self-consistency). `weighted`: one with the answer whose rewards add up to "
        "most.",
    )
    tokens: int = Field(16_384, ge=1, description="Tokens to sample per problem; the last round may exceed it.")
    branches: int = Field(4, ge=1, description="Next steps that are sampled at once, or solutions with `sampling`.")
    width: int = Field(4, ge=1, description="`beam`: number of partial solutions that are kept.")
    exploration: float = Field(0.5, ge=0, description="`mctsg`, `mcts`: weight of the bonus for little explored nodes.")
    max_steps: int = Field(64, ge=1, description="Maximum number of steps; a longer partial solution is given up.")
    agree: int | None = Field(
        None,
        ge=2,
        description="End a problem early once as many solutions have the same answer, and all others fewer "
        "than half as many. Null: never.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="End a problem early once as many solutions in a row have had no higher reward than the best "
        "before them. Null: never.",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.strategy != "beam" and "width" in self.model_fields_set:
            raise ValueError(f"width is set, but strategy {self.strategy} does not use it: leave it out")
        if self.strategy in ("beam", "sampling") and "exploration" in self.model_fields_set:
            raise ValueError(f"exploration is set, but strategy {self.strategy} does not use it: leave it out")
        return self

    @property
    def scores(self) -> bool:
        """Whether the reward model is asked at all."""
        return self.strategy != "sampling" or self.answer != "majority"


def search(tree: Tree, config: SearchConfig) -> Search:
    """Search a problem as configured, until its budget is spent or nothing is left to expand."""
    if config.strategy == "sampling":
        return sampling(tree, config)
    if config.strategy == "beam":
        return beam(tree, config)
    rule = GlobalSelection if config.strategy == "mctsg" else ChildSelection
    return tree_search(tree, config, rule(tree, config.exploration))


def sampling(tree: Tree, config: SearchConfig) -> Search:
    """Independent solutions, `branches` at a time."""
    while tree.tokens < config.tokens:
        (found,) = yield [Solve(0, config.branches)]
        solutions = sampled(found)
        if not solutions:  # refused, and would be again
            return
        tree.tokens += sum(each.tokens for each in solutions)
        ended = [each for each in solutions if each.ended]
        rewards = (yield [Score(each.text) for each in ended]) if config.scores and ended else [None] * len(ended)
        for each, reward in zip(ended, rewards, strict=True):
            tree.found(0, each.text, as_reward(reward))


def tree_search(tree: Tree, config: SearchConfig, selection: Selection) -> Search:
    """Monte Carlo tree search: select a node, add next steps, solve from each, score, and add the rewards up."""
    while tree.tokens < config.tokens and (node := selection.node()) is not None:
        children = yield from expanded(tree, config, node)
        ends: list[tuple[Node, str]] = [(child, "") for child in children if child.ended]
        going = [child for child in children if not child.ended]
        results = (yield [Solve(child.number, 1) for child in going]) if going else []
        for child, result in zip(going, results, strict=True):
            for each in sampled(result):
                tree.tokens += each.tokens
                if each.ended:
                    ends.append((child, each.text))
        rewards = (yield [Score(tree.text(child.number) + rest) for child, rest in ends]) if ends else []
        for (child, rest), reward in zip(ends, rewards, strict=True):
            tree.found(child.number, rest, as_reward(reward))
        for child in children:
            selection.updated(child.number)


def beam(tree: Tree, config: SearchConfig) -> Search:
    """Level by level, the `width` partial solutions that the reward model likes best are continued."""
    level = [tree.nodes[0]]
    while tree.tokens < config.tokens:
        found: list[Node] = []
        for node in level:
            found += yield from expanded(tree, config, node)
        if not found:
            return
        rewards = yield [Score(tree.text(node.number)) for node in found]
        ranked = []
        for node, reward in zip(found, rewards, strict=True):
            if node.ended:
                tree.found(node.number, "", as_reward(reward))
            elif (value := as_reward(reward)) is not None:
                ranked.append((-value, node.number))
        level = [tree.nodes[number] for _, number in sorted(ranked)[: config.width]]
        if not level:
            return


def expanded(tree: Tree, config: SearchConfig, node: Node) -> Generator[list[Ask], list[Result], list[Node]]:
    """Add next steps after a node. Returns the new nodes; the node is closed after `FRUITLESS` attempts without any.

    Steps with the same text are one. A step that repeats the one before it leads nowhere, and is left out.
    """
    (result,) = yield [NextSteps(node.number, config.branches)]
    steps = sampled(result)
    tree.tokens += sum(each.tokens for each in steps)
    known = {tree.nodes[child].text.strip() for child in node.children} | {node.text.strip(), ""}
    different = {each.text.strip(): each for each in steps if each.text.strip() not in known}
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
