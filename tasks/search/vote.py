"""Which of a problem's solutions is its answer, and whether more solutions could still change that."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal, TypeAlias

from tasks.search.strategies import SearchConfig

Vote: TypeAlias = Literal["best", "majority", "weighted"]
"""Which of the solutions found is the answer. `best`: the one with the highest reward. `majority`: one with the most
frequent answer (self-consistency). `weighted`: one with the answer whose rewards add up to most."""


def chosen(scored: Sequence[float | None], answers: Sequence[str | None], how: Vote) -> int | None:
    """The place of the solution that is the answer; None without solutions. Ties go to the earliest.

    Args:
        scored: the reward of each solution, 0 or more; None if it was not scored, which counts as 0.
        answers: what each solution answers, so that equal answers are equal; None for one without an answer, which
            has no vote.
    """
    if not scored:
        return None
    rewards = [reward or 0.0 for reward in scored]
    if how == "best":
        return max(range(len(rewards)), key=lambda n: (rewards[n], -n))
    votes: defaultdict[str, float] = defaultdict(float)
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            votes[answer] += 1.0 if how == "majority" else reward
    if not votes:
        return max(range(len(rewards)), key=lambda n: (rewards[n], -n))
    first = {answer: answers.index(answer) for answer in votes}
    winner = max(votes, key=lambda answer: (votes[answer], -first[answer]))
    own = [n for n, answer in enumerate(answers) if answer == winner]
    return max(own, key=lambda n: (rewards[n], -n))


def is_decided(scored: Sequence[float | None], answers: Sequence[str | None], config: SearchConfig) -> bool:
    """Whether a problem ends before its budget is spent: enough solutions agree, or nothing better has come up."""
    if config.agree is not None:
        (_, most), (_, second) = (
            *Counter(each for each in answers if each is not None).most_common(2),
            ("", 0),
            ("", 0),
        )[:2]
        if most >= config.agree and 2 * second < most:
            return True
    if config.patience is None or not scored:
        return False
    rewards = [reward or 0.0 for reward in scored]
    return len(rewards) - 1 - rewards.index(max(rewards)) >= config.patience
