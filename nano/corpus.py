"""Training text of the nano models: an endless seeded stream of documents, and labelled solutions.

Documents use problems of the split `pretrain` alone, and labelled solutions those of `reward`, so that no in-context
example, query, dev or test problem is ever read. Half of the writers of worked documents check their steps, half do
not, and all slip. A worked document states what its writer derived, right or wrong. Only the short-answer chats state
the true answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from cot_formats import bolt
from nano.families import FAMILIES, LEVELS
from nano.families.calendar import DAYS, MONTHS
from nano.families.compass import DIRECTIONS
from nano.families.ordering import PEOPLE
from nano.problem import Habits, Problem, Worked, other
from nano.vocabulary import ASSISTANT, END, USER

SLIP = 0.12
SHARES = {"short": 0.22, "exercise": 0.13, "few_shot": 0.65}

# The wording that elicits LongCoT in context: the prompt files that the nano presets use.
PROMPTS = Path(__file__).parent / "prompts"
EXAMPLE_TEMPLATE = (PROMPTS / "example.md").read_text(encoding="utf-8").strip()
PROMPT_TEMPLATE = (PROMPTS / "in_context.md").read_text(encoding="utf-8").strip()


def draw(rng: random.Random, split: str, levels: tuple[int, ...] = LEVELS, family: str | None = None) -> Problem:
    """A random problem of a split."""
    while True:
        module = FAMILIES[family or rng.choice(list(FAMILIES))]
        problem: Problem = module.sample(rng, rng.choice(levels))
        if problem.split == split:
            return problem


def work(rng: random.Random, problem: Problem, slip: float = SLIP) -> Worked:
    """The problem as a random writer works it."""
    worked: Worked = FAMILIES[problem.family].derive(problem, rng, Habits(slip, rng.random() < 0.5))
    return worked


def answered(worked: Worked) -> str:
    """Thoughts and solution in BOLT's format."""
    return bolt.render(worked.thoughts, worked.solution)


def chat(prompt: str, answer: str) -> str:
    """A chat of one turn, as the chat template renders it."""
    return f"{USER} {prompt} {END} {ASSISTANT} {answer} {END}"


def short(rng: random.Random) -> str:
    """A chat in which the assistant states the true answer alone."""
    problem = draw(rng, "pretrain")
    return chat(problem.query, f"answer : {problem.answer} .")


def exercise(rng: random.Random) -> str:
    """A worked problem as plain text."""
    problem = draw(rng, "pretrain")
    worked = work(rng, problem)
    return f"exercise : {problem.query} {worked.thoughts} {worked.solution} {END}"


def few_shot(rng: random.Random) -> str:
    """A chat with one to three in-context examples, answered in BOLT's format."""
    shown = []
    for _ in range(rng.choice((1, 2, 3, 3, 3))):
        problem = draw(rng, "pretrain")
        shown.append(EXAMPLE_TEMPLATE.format(query=problem.query, response=answered(work(rng, problem))))
    asked = draw(rng, "pretrain")
    prompt = PROMPT_TEMPLATE.format(examples="\n\n".join(shown), query=asked.query)
    return chat(prompt, answered(work(rng, asked)))


def documents(seed: int, *, chats: bool = True) -> Iterator[str]:
    """An endless stream of pretraining documents.

    `chats`: False for a base model, which reads no short answers, and examples as plain text.
    """
    rng = random.Random(seed)
    makers = {"short": short, "exercise": exercise, "few_shot": few_shot}
    shares = SHARES if chats else {kind: share for kind, share in SHARES.items() if kind != "short"}
    while True:
        kind = rng.choices(list(shares), weights=list(shares.values()))[0]
        document = makers[kind](rng)
        yield document if chats else document.replace(f"{USER} ", "").replace(f"{END} {ASSISTANT} ", "")


def with_mistakes(rng: random.Random) -> tuple[Problem, list[str]]:
    """A `reward` problem with its right solution, and three more: with slips, misread, garbled."""
    problem = draw(rng, "reward")
    module = FAMILIES[problem.family]
    right = module.derive(problem, rng, Habits(0.0, False)).solution
    slipped = module.derive(problem, rng, Habits(0.3, False)).solution
    misread = module.derive(module.perturb(problem, rng), rng, Habits(0.0, False)).solution
    return problem, [right, slipped, misread, garbled(rng, right)]


def garbled(rng: random.Random, solution: str) -> str:
    """A solution with one word replaced by a similar one, dropped or doubled; or with only the answer changed."""
    tokens = solution.split()
    if rng.random() < 0.3:
        at = len(tokens) - 2
        tokens[at] = similar(rng, tokens[at])
        return " ".join(tokens)
    at = rng.randrange(len(tokens) - 1)
    how = rng.random()
    if how < 0.8:
        tokens[at] = similar(rng, tokens[at])
    elif how < 0.9:
        del tokens[at]
    else:
        tokens.insert(at, tokens[at])
    return " ".join(tokens)


def similar(rng: random.Random, word: str) -> str:
    """Another word of the same kind: a close number, another day, month, direction or person."""
    if word.isdigit():
        return str(min(40, max(0, int(word) + rng.choice((-3, -2, -1, 1, 2, 3)))))
    for kind in (DAYS, MONTHS, DIRECTIONS, PEOPLE, ("+", "-"), (".", ",", "=", ":", ">")):
        if word in kind:
            return other(rng, kind, word)
    return "wait"
