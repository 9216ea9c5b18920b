"""The tree of a problem's partial solutions: each node is a step, and each solution found belongs to a node.

What a search asks for, and what it gets, are plain values, so that a search is a generator that knows no server.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class NextSteps:
    """Sample `count` next steps after a node."""

    node: int
    count: int


@dataclass(frozen=True, slots=True)
class Solve:
    """Sample `count` solutions from a node to their ends."""

    node: int
    count: int


@dataclass(frozen=True, slots=True)
class Score:
    """Ask the reward model about a solution."""

    text: str


Ask: TypeAlias = NextSteps | Solve | Score


@dataclass(frozen=True, slots=True)
class Sampled:
    """A text that continues a node. `ended`: the model ended the solution with it."""

    text: str
    tokens: int
    ended: bool


Result: TypeAlias = list[Sampled] | float | None
"""What was sampled, or the reward; None if the server refused the request."""
Search: TypeAlias = Generator[list[Ask], list[Result], None]
"""Yields what it asks for next, and is sent the results in the same order."""


@dataclass(slots=True)
class Node:
    """A step. `visits` is the number of attempts to solve the problem through it, and `total` the sum of their rewards.

    It is expanded no more once it is `closed`, and never if the solution `ended` with it.
    """

    number: int
    parent: int | None
    depth: int
    text: str
    tokens: int = 0
    ended: bool = False
    visits: int = 0
    total: float = 0.0
    closed: bool = False
    fruitless: int = 0
    """Attempts in a row to add steps after it that gave nothing new."""
    children: list[int] = field(default_factory=list)
    open: int = 1
    """Leaves in its subtree that may still be expanded; a leaf itself counts as one."""

    @property
    def value(self) -> float:
        """The mean reward of the attempts through the node; 0 without any."""
        return self.total / self.visits if self.visits else 0.0


@dataclass(frozen=True, slots=True)
class Solution:
    """A finished solution: the steps up to `node`, and `rest`. `reward` is None if it was not scored."""

    node: int
    text: str
    rest: str
    reward: float | None = None


class Tree:
    """A problem's partial and finished solutions."""

    def __init__(self) -> None:
        self.nodes = [Node(0, None, 0, "")]
        self.solutions: list[Solution] = []
        self.tokens = 0
        """Tokens sampled so far."""

    def path(self, number: int) -> list[Node]:
        """The nodes from the root to a node."""
        found = []
        node: Node | None = self.nodes[number]
        while node is not None:
            found.append(node)
            node = None if node.parent is None else self.nodes[node.parent]
        return found[::-1]

    def text(self, number: int) -> str:
        """The partial solution up to a node."""
        return "".join(node.text for node in self.path(number))

    def add(self, parent: int, step: Sampled) -> Node:
        """Add a step after a node. One that ends the solution can not be expanded."""
        above = self.nodes[parent]
        node = Node(len(self.nodes), parent, above.depth + 1, step.text, step.tokens, step.ended)
        node.open = 0 if step.ended else 1
        first = not above.children
        self.nodes.append(node)
        above.children.append(node.number)
        self._opened(parent, node.open - (1 if first else 0))  # the parent is no leaf any more
        return node

    def close(self, number: int) -> None:
        """Expand a node no more."""
        node = self.nodes[number]
        if not node.children and not node.closed and not node.ended:
            self._opened(number, -1)
        node.closed = True

    def _opened(self, number: int, change: int) -> None:
        at: int | None = number if change else None
        while at is not None:
            node = self.nodes[at]
            node.open += change
            at = node.parent

    def _tried(self, number: int, reward: float) -> None:
        """Count an attempt and its reward in all nodes that it goes through."""
        at: int | None = number
        while at is not None:
            node = self.nodes[at]
            node.visits += 1
            node.total += reward
            at = node.parent

    def lost(self, node: int) -> None:
        """Count an attempt that gave no solution with a reward, as one of reward 0, so that others are tried too."""
        self._tried(node, 0.0)

    def found(self, node: int, text: str, rest: str, reward: float | None) -> Solution:
        """Keep a finished solution, and add its reward, if it was scored, to all nodes that it goes through.

        `text`: all of it; `rest`: what follows the node.
        """
        solution = Solution(node, text, rest, reward)
        self.solutions.append(solution)
        if reward is not None:
            self._tried(node, reward)
        return solution

    def expandable(self, number: int) -> bool:
        """Whether steps may be added after a node."""
        return not self.nodes[number].ended and not self.nodes[number].closed
