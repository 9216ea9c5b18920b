"""Which of a problem's solutions is its answer, and whether more solutions could still change that."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

from tasks.search.strategies import SearchConfig
from tasks.search.tree import Solution


def chosen(
    solutions: Sequence[Solution], answers: Sequence[str | None], how: Literal["best", "majority", "weighted"]
) -> int | None:
    """The place of the solution that is the answer; None without solutions. Ties go to the earliest.

    Args:
        answers: what each solution answers, so that equal answers are equal; None for one without an answer, which
            has no vote.

    Rewards are taken to be 0 or more. A solution that was not scored has none.
    """
    if not solutions:
        return None
    rewards = [solution.reward or 0.0 for solution in solutions]
    if how == "best":
        return max(range(len(solutions)), key=lambda n: (rewards[n], -n))
    votes: defaultdict[str, float] = defaultdict(float)
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            votes[answer] += 1.0 if how == "majority" else reward
    if not votes:
        return max(range(len(solutions)), key=lambda n: (rewards[n], -n))
    first = {answer: answers.index(answer) for answer in votes}
    winner = max(votes, key=lambda answer: (votes[answer], -first[answer]))
    own = [n for n, answer in enumerate(answers) if answer == winner]
    return max(own, key=lambda n: (rewards[n], -n))


def is_decided(solutions: Sequence[Solution], answers: Sequence[str | None], config: SearchConfig) -> bool:
    """Whether a problem ends before its budget is spent: enough solutions agree, or nothing better has come up."""
    if config.agree is not None:
        (_, most), (_, second) = (
            *Counter(each for each in answers if each is not None).most_common(2),
            ("", 0),
            ("", 0),
        )[:2]
        if most >= config.agree and 2 * second < most:
            return True
    if config.patience is None or not solutions:
        return False
    rewards = [solution.reward or 0.0 for solution in solutions]
    return len(rewards) - 1 - rewards.index(max(rewards)) >= config.patience
