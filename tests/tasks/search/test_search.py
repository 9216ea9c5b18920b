"""Searches against a hand-worked tree, and against all solutions of small problems; no model is needed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.search.select import ChildSelection, GlobalSelection, promise
from tasks.search.strategies import SearchConfig, search
from tasks.search.tree import Ask, NextSteps, Result, Sampled, Score, Solve, Tree
from tasks.search.vote import chosen, is_decided

DEPTH, DIGITS = 3, "0123"


def digits_problem(target: str, rng: random.Random) -> Callable[[Tree, Ask], Result]:
    """A policy that writes random digits, one a step, `DEPTH` in all; the reward is the share of digits that are right
    from the first on."""

    def reward(text: str) -> float:
        agree = next((n for n, (a, b) in enumerate(zip(text, target, strict=False)) if a != b), len(target))
        return agree / len(target)

    def answer(tree: Tree, ask: Ask) -> Result:
        if isinstance(ask, Score):
            return reward(ask.text)
        left = DEPTH - len(tree.text(ask.node))
        count = 1 if isinstance(ask, NextSteps) else left
        return [
            Sampled("".join(rng.choice(DIGITS) for _ in range(count)), count, ended=count == left)
            for _ in range(ask.count)
        ]

    return answer


def run(config: SearchConfig, answer: Callable[[Tree, Ask], Result]) -> tuple[Tree, int]:
    """The tree of a search that was run to its end, and the number of turns."""
    tree, turns = Tree(), 0
    going = search(tree, config)
    asks: Sequence[Ask] | None = next(going, None)
    while asks is not None:
        turns += 1
        results = [answer(tree, ask) for ask in asks]
        try:
            asks = going.send(results)
        except StopIteration:
            asks = None
    return tree, turns


def worked() -> Tree:
    """A root with two steps a and b; a has the steps c and d. Rewards: a .5, b .6, then c .9 and d .1."""
    tree = Tree()
    a, b = tree.add(0, Sampled("a", 1, ended=False)), tree.add(0, Sampled("b", 1, ended=False))
    tree.found(a.number, tree.text(a.number) + "-", "-", 0.5)
    tree.found(b.number, tree.text(b.number) + "-", "-", 0.6)
    c, d = tree.add(a.number, Sampled("c", 1, ended=False)), tree.add(a.number, Sampled("d", 1, ended=True))
    tree.found(c.number, tree.text(c.number) + "-", "-", 0.9)
    tree.found(d.number, tree.text(d.number), "", 0.1)
    return tree


def test_rewards_are_added_up_along_the_path() -> None:
    tree = worked()
    assert [(node.text, node.visits, round(node.total, 6)) for node in tree.nodes] == [
        ("", 4, 2.1),
        ("a", 3, 1.5),
        ("b", 1, 0.6),
        ("c", 1, 0.9),
        ("d", 1, 0.1),
    ]
    assert [each.text for each in tree.solutions] == ["a-", "b-", "ac-", "ad"]
    assert tree.nodes[1].value == pytest.approx(0.5)


def test_leaves_that_may_be_expanded_are_counted() -> None:
    tree = worked()
    assert [node.open for node in tree.nodes] == [2, 1, 1, 1, 0]
    tree.close(3)
    tree.close(3)
    assert [node.open for node in tree.nodes] == [1, 0, 1, 0, 0]


def test_selection_among_all_leaves_and_child_by_child_differ() -> None:
    """Worked by hand, with a weight of 0.5. Among all nodes: the root has .525 + .5 / 2 = .775, a has
    .5 + .5 / sqrt(3) = .789, b .6 + .5 = 1.1, c .9 + .5 = 1.4. Child by child: a has .5 + .5 sqrt(ln 4 / 3) = .84, b
    .6 + .5 sqrt(ln 4) = 1.19."""
    tree = worked()
    assert [promise(node, 0.5) for node in tree.nodes[:4]] == pytest.approx([0.775, 0.5 + 0.5 / math.sqrt(3), 1.1, 1.4])
    everywhere, children = GlobalSelection(tree, 0.5), ChildSelection(tree, 0.5)
    for number in (2, 3, 4):
        everywhere.updated([tree.nodes[number]])
        children.updated([tree.nodes[number]])

    def selected(selection: GlobalSelection | ChildSelection) -> int | None:
        node = selection.node()
        return None if node is None else node.number

    assert (selected(everywhere), selected(children)) == (3, 2)
    tree.close(3)
    assert (selected(everywhere), selected(children)) == (2, 2)
    tree.close(2)  # no leaf is left: expanded nodes get further steps
    assert (selected(everywhere), selected(children)) == (1, 1)
    tree.close(1)
    assert (selected(everywhere), selected(children)) == (0, 0)
    tree.close(0)
    assert (selected(everywhere), selected(children)) == (None, None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 2))
def test_the_heap_finds_the_most_promising_of_all_nodes(seed: int, exploration: float) -> None:
    """Against a look at all nodes, while a tree grows at random."""
    rng, tree = random.Random(seed), Tree()
    selection = GlobalSelection(tree, exploration)
    for _ in range(30):
        leaf = selection.node()
        nodes = [node for node in tree.nodes if tree.expandable(node.number)]
        assert (leaf is None) == (not nodes)
        if leaf is None:
            return
        assert promise(leaf, exploration) == max(promise(each, exploration) for each in nodes)
        children = [tree.add(leaf.number, Sampled("x", 1, ended=rng.random() < 0.2)) for _ in range(rng.randrange(4))]
        if not children:
            tree.close(leaf.number)
        for child in children:
            if rng.random() < 0.8:
                tree.found(child.number, tree.text(child.number), "", rng.random())
        for child in children:
            selection.updated([child])
        leaves = [node for node in tree.nodes if not node.children and tree.expandable(node.number)]
        assert tree.nodes[0].open == len(leaves)


@pytest.mark.parametrize("strategy", ["mctsg", "mcts"])
def test_a_tree_search_finds_what_all_solutions_contain(strategy: Any) -> None:
    """With budget enough the best of all 64 solutions is found, which as many tokens of plain sampling may miss."""
    targets = [each for each in map("".join, product(DIGITS, repeat=DEPTH)) if each[0] != each[1] != each[2]][::2]
    found = {"search": 0, "sampling": 0}
    for seed in range(len(targets)):
        target = targets[seed]
        config = SearchConfig(strategy=strategy, tokens=600, branches=8)
        tree, _ = run(config, digits_problem(target, random.Random(seed)))
        best = chosen([each.reward for each in tree.solutions], [each.text for each in tree.solutions], "best")
        found["search"] += best is not None and tree.solutions[best].text == target
        plain = SearchConfig(strategy="sampling", tokens=tree.tokens, branches=8)
        other, _ = run(plain, digits_problem(target, random.Random(seed)))
        found["sampling"] += any(each.text == target for each in other.solutions)
    assert found["search"] == len(targets) == 18
    assert found["sampling"] < 18, "the problems are too easy to tell"


def test_a_beam_keeps_the_best_partial_solutions() -> None:
    config = SearchConfig(strategy="beam", width=2, branches=40, tokens=10_000)
    tree, turns = run(config, digits_problem("213", random.Random(1)))
    assert {node.text for node in tree.nodes if node.depth == 1} == set(DIGITS)
    level_2 = [node for node in tree.nodes if node.depth == 2]
    assert len({node.parent for node in level_2}) == 2
    assert "213" in {each.text for each in tree.solutions}
    assert turns == 3 * 2  # of each level: its steps, and their scores


@pytest.mark.parametrize("strategy", ["mctsg", "mcts", "beam", "sampling"])
def test_every_search_ends_whatever_the_policy_does(strategy: Any) -> None:
    def refusing(_tree: Tree, _ask: Ask) -> Result:
        return None

    def repeating(_tree: Tree, ask: Ask) -> Result:
        return 0.5 if isinstance(ask, Score) else [Sampled("again", 1, ended=False)] * ask.count

    config = SearchConfig(strategy=strategy, tokens=200)
    for answer in (refusing, repeating):
        tree, turns = run(config, answer)
        assert tree.solutions == []
        assert turns < 200


@pytest.mark.parametrize("strategy", ["mctsg", "mcts"])
def test_a_branch_that_never_ends_does_not_take_the_whole_budget(strategy: Any) -> None:
    """Solutions after the step "loop" are always cut off; those after "good" are right."""

    def answer(tree: Tree, ask: Ask) -> Result:
        if isinstance(ask, Score):
            return 0.5
        text = tree.text(ask.node)
        if isinstance(ask, NextSteps) and not text:
            return [Sampled(step, 1, ended=False) for step in ("loop", "good")]
        ended = text.startswith("good")
        return [Sampled(f" {len(tree.nodes)}", 1, ended=ended and isinstance(ask, Solve)) for _ in range(ask.count)]

    tree, _ = run(SearchConfig(strategy=strategy, tokens=300, branches=2, max_steps=6), answer)
    loop, good = tree.nodes[1], tree.nodes[2]
    assert loop.value == 0
    assert good.visits > loop.visits


def test_a_beam_ends_at_the_longest_solution_allowed() -> None:
    def answer(tree: Tree, ask: Ask) -> Result:
        return 0.5 if isinstance(ask, Score) else [Sampled(f"{len(tree.nodes)} ", 1, ended=False)] * ask.count

    tree, _ = run(SearchConfig(strategy="beam", max_steps=3, tokens=10_000), answer)
    assert max(node.depth for node in tree.nodes) == 3


def test_an_end_after_a_delimiter_ends_the_solution_there() -> None:
    """The policy ends its turn after a step's delimiter; the same step, ended and not, is one that ended."""

    def answer(tree: Tree, ask: Ask) -> Result:
        if isinstance(ask, Score):
            return 0.5
        if not tree.text(ask.node):
            return [Sampled("It is 5\n\n", 3, ended=False)]
        return [Sampled("", 1, ended=True), Sampled("More\n\n", 1, ended=False), Sampled("More", 1, ended=True)]

    tree, _ = run(SearchConfig(strategy="beam", tokens=100), answer)
    assert [each.text for each in tree.solutions] == ["It is 5\n\n", "It is 5\n\nMore"]


def test_a_budget_too_small_for_one_solution_still_gives_one() -> None:
    for strategy in ("mctsg", "mcts", "sampling"):
        config = SearchConfig(strategy=strategy, tokens=1)
        tree, _ = run(config, digits_problem("123", random.Random(0)))
        assert tree.solutions


def test_steps_with_the_same_text_are_one() -> None:
    def answer(tree: Tree, ask: Ask) -> Result:
        if isinstance(ask, Score):
            return 1.0
        return [Sampled(text, 1, ended=True) for text in ("a", "a", "b", " ")[: ask.count]]

    tree, _ = run(SearchConfig(tokens=1), answer)
    assert [node.text for node in tree.nodes[1:]] == ["a", "b"]


def solutions(*found: tuple[str, float]) -> tuple[list[float], list[str | None]]:
    return [reward for _, reward in found], [answer or None for answer, _ in found]


def test_votes_are_those_worked_by_hand() -> None:
    held, answers = solutions(("7", 0.9), ("8", 0.4), ("8", 0.3), ("9", 0.1), ("8", 0.1), ("", 1.0))
    picks = {how: chosen(held, answers, how) for how in ("best", "majority", "weighted")}  # type: ignore[arg-type]
    assert picks == {"best": 5, "majority": 1, "weighted": 0}  # 8: .4 + .3 + .1 < .9; no answer, no vote
    assert chosen([], [], "majority") is None
    nothing, none = solutions(("", 0.2), ("", 0.3))
    assert chosen(nothing, none, "majority") == 1


def test_a_problem_ends_early_when_it_is_decided_or_makes_no_progress() -> None:
    held, answers = solutions(("7", 0.5), ("7", 0.5), ("8", 0.2), ("7", 0.1))
    assert is_decided(held, answers, SearchConfig(agree=3))
    assert not is_decided(held, answers, SearchConfig(agree=4))
    assert not is_decided(held[:3], ["7", "8", "8"], SearchConfig(agree=2))
    assert is_decided(held, answers, SearchConfig(patience=3))
    assert not is_decided(held, answers, SearchConfig(patience=4))
    assert not is_decided([], [], SearchConfig(agree=2, patience=1))


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"width": 2}, "width is set, but strategy mctsg does not use it"),
        ({"strategy": "sampling", "exploration": 1.0}, "exploration is set, but strategy sampling"),
        ({"strategy": "sampling", "max_steps": 3}, "max_steps is set, but strategy sampling does not use it"),
    ],
)
def test_settings_without_effect_are_refused(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SearchConfig(**given_)


def test_selection_does_not_look_at_the_whole_tree() -> None:
    """With ten times the nodes, what is pushed for each of them hardly grows: the nodes of its path."""
    pushed = []
    for size in (1_000, 10_000):
        rng, tree = random.Random(0), Tree()
        selection = GlobalSelection(tree, 0.5)
        while len(tree.nodes) < size:
            leaf = selection.node()
            assert leaf is not None
            for _ in range(4):
                child = tree.add(leaf.number, Sampled("x", 1, ended=leaf.depth >= 8))
                tree.found(child.number, tree.text(child.number), "", rng.random())
                selection.updated([child])
        pushed.append(len(selection._heap) / size)
    assert pushed[1] < 1.5 * pushed[0]
