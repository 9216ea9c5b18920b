"""Which node a tree search expands next: among all nodes (MCTSG), or child by child from the root (MCTS)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Protocol

from tasks.search.tree import Node, Tree


class Selection(Protocol):
    """A rule that selects nodes of a growing tree."""

    def node(self) -> Node | None:
        """The node to add steps after; None if there is none."""

    def updated(self, nodes: Sequence[Node]) -> None:
        """Rewards were added to these nodes, and to all nodes above them."""


def promise(node: Node, exploration: float) -> float:
    """How promising it is to add steps after a node, among all nodes: its value, and a bonus that falls with the number
    of solutions that go through it.

    STILL-1 selects among all leaves by value and a bonus like that of UCB, and publishes no formula; this one is this
    project's choice. The factor of UCB's bonus that is the same for all nodes is left out. A node that has been
    expanded may be selected again once the leaves are less promising: then it gets further steps.
    """
    return node.value + exploration / math.sqrt(max(1, node.visits))


class GlobalSelection:
    """The most promising of all nodes, in time that grows with the logarithm of their number."""

    def __init__(self, tree: Tree, exploration: float) -> None:
        self._tree, self._exploration = tree, exploration
        self._heap: list[tuple[float, int]] = []
        self._pushed: dict[int, float] = {}
        self.updated(tree.nodes)

    def node(self) -> Node | None:
        """The node with the highest promise; among equals the earliest."""
        while self._heap:
            negative, number = self._heap[0]
            if self._pushed[number] == negative and self._tree.expandable(number):
                return self._tree.nodes[number]
            heapq.heappop(self._heap)  # out of date, or not to be expanded any more
        return None

    def updated(self, nodes: Sequence[Node]) -> None:
        """Push those of the nodes, and of the nodes above them, anew whose promise has changed."""
        changed = {node.number: node for node in nodes}
        for node in nodes:
            at = node.parent
            while at is not None and at not in changed:
                changed[at] = self._tree.nodes[at]
                at = changed[at].parent
        for node in changed.values():
            negative = -promise(node, self._exploration)
            if self._pushed.get(node.number) != negative and self._tree.expandable(node.number):
                self._pushed[node.number] = negative
                heapq.heappush(self._heap, (negative, node.number))


class ChildSelection:
    """From the root down to a leaf, the child with the highest upper confidence bound (UCT, Kocsis and Szepesvari
    2006). When no leaf is left to expand, the most promising of all nodes gets further steps."""

    def __init__(self, tree: Tree, exploration: float) -> None:
        self._tree, self._exploration = tree, exploration
        self._others = GlobalSelection(tree, exploration)

    def node(self) -> Node | None:
        """The leaf that the descent ends at; subtrees without a leaf to expand are passed over."""
        node, nodes = self._tree.nodes[0], self._tree.nodes
        if not node.open:
            return self._others.node()
        while node.children:
            above = node
            below = [nodes[n] for n in above.children if nodes[n].open]
            node = max(below, key=lambda child: (self._bound(child, above), -child.number))
        return node

    def updated(self, nodes: Sequence[Node]) -> None:
        """Bounds are computed on the way down; only the most promising node is kept track of."""
        self._others.updated(nodes)

    def _bound(self, child: Node, above: Node) -> float:
        if not child.visits:
            return math.inf
        return child.value + self._exploration * math.sqrt(math.log(max(1, above.visits)) / child.visits)
