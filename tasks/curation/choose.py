"""The step that writes the table `examples`: which candidates become in-context examples (BOLT section 3.1.1)."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from infra.serving.classifier import Classifier
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import EXAMPLES
from infra.store.store import Store
from infra.store.tables import write_table
from infra.text.chat import count_tokens, load_tokenizer
from tasks.examples.read import ExamplesConfig, candidates, checked, reject, remaining, select, taken_examples
from tasks.queries.overlap import Contained, Hashed, near_duplicates, words
from tasks.queries.sources import Source, problems_of
from tasks.responses.prompt import PromptConfig, in_context_text
from tasks.rewards.score import reward_input_ids

IN_FLIGHT = 8  # requests to the reward model at once: candidates are few
CONTAINED_WORDS = 5  # a query that contains a whole problem of this many words counts as copied (see decontaminate.py)
SHARED_WORDS = 13  # a query with this many consecutive words in common with an evaluation set counts as copied from it
SHOWN = ("example_id", "topic", "author", "licence", "words", "tokens", "reward", "evidence", "rejected", "why")


class Room(BaseModel, frozen=True):
    """The context that the examples of one prompt must fit; lengths are in tokens of the model's tokenizer."""

    prompt: PromptConfig
    max_tokens: int
    max_model_len: int


def reject_held_out(examples: Sequence[dict[str, Any]], config: ExamplesConfig) -> None:
    """Reject candidates whose query resembles one of an evaluation set.

    It does if the two are near-duplicates or share SHARED_WORDS consecutive words, or if it contains the other one, of
    at least CONTAINED_WORDS words, whole.
    """
    held = {
        f"{source.place}, row {problem['source_row']}": problem["query"]
        for source in (Source(path=str(path)) for path in config.held_out)
        for problem in problems_of(source)
    }
    places = list(held)
    for earlier, later, share in near_duplicates(
        [*held.values(), *(each["query"] for each in examples)], config.near_duplicates
    ):
        if earlier < len(held) <= later:
            why = f"its query is a near-duplicate ({share:.0%}) of {places[earlier]}"
            reject(examples[later - len(held)], "held out", why)
    theirs, ours = (
        Hashed.of([words(query) for query in queries])
        for queries in (held.values(), [each["query"] for each in examples])
    )
    long_enough = np.flatnonzero(np.diff(theirs.ends) >= CONTAINED_WORDS)
    for number, query in zip(*Contained(theirs, long_enough).of(ours), strict=True):
        if examples[number]["rejected"] is None:
            reject(examples[number], "held out", f"its query contains {places[query]}")
    known, _ = theirs.ngrams(SHARED_WORDS)
    runs, rows = ours.ngrams(SHARED_WORDS)
    for number in np.unique(rows[np.isin(runs, known)]):
        if examples[number]["rejected"] is None:
            why = f"its query shares {SHARED_WORDS} consecutive words with a held-out one"
            reject(examples[number], "held out", why)


def reject_too_long(examples: Sequence[dict[str, Any]], config: ExamplesConfig, room: Room, tokenizer: Any) -> None:
    """Reject the longest candidates until any `room.prompt.examples` of the others fit the context.

    The context must hold the prompt with these examples, `query_tokens` for the query and `max_tokens` for the answer.
    """

    empty = prompt_tokens([], config, room, tokenizer)
    for each in examples:
        each["tokens"] = prompt_tokens([each], config, room, tokenizer) - empty
    longest_first = sorted(examples, key=lambda each: -each["tokens"])
    for number, longest in enumerate(longest_first):
        shown = longest_first[number : number + room.prompt.examples]
        prompt = prompt_tokens(shown, config, room, tokenizer)
        needed = prompt + config.query_tokens + room.max_tokens
        if len(shown) < room.prompt.examples or needed <= room.max_model_len:
            return
        why = (
            f"with the next longest it makes a prompt of {prompt:,} tokens; with {config.query_tokens:,} for the query "
            f"and {room.max_tokens:,} for the answer (max_tokens) that is {needed:,}, max_model_len is "
            f"{room.max_model_len:,}: shorten it, raise max_model_len, or lower max_tokens"
        )
        reject(longest, "context", why)


def prompt_tokens(shown: Sequence[dict[str, Any]], config: ExamplesConfig, room: Room, tokenizer: Any) -> int:
    """The length of a prompt with the examples `shown` and an empty query, in tokens."""
    return count_tokens(tokenizer, in_context_text(room.prompt, shown, "", tokenizer, config.format))


def judged(
    config: ExamplesConfig,
    room: Room | None,
    tokenizer: Any,
    ranking: Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]] | None = None,
) -> list[dict[str, Any]]:
    """All candidates, in their order, after every check; those that are not `rejected` are taken.

    Args:
        room: the context that they must fit by `tokenizer`; if either is None, this is not checked.
        ranking: sorts the candidates that pass the checks, best first; if omitted, they keep their order.
    """
    found = [checked(each, config) for each in candidates(config)]
    reject_held_out(remaining(found), config)
    if room and tokenizer:
        reject_too_long(remaining(found), config, room, tokenizer)
    ranked = remaining(found)
    if ranking and ranked:
        ranked = ranking(ranked)
    reject_near_duplicates(ranked, config)
    select(remaining(ranked), config)
    return found


def foreseen(config: ExamplesConfig, room: Room, model: Path) -> str:
    """What a dry run says of the examples, from the user's files: how long a prompt gets with the longest of them.

    Args:
        model: folder with the model's tokenizer.

    Raises:
        BadInput: as `choose_examples`.
    """
    tokenizer = load_tokenizer(model)
    found = judged(config, room, tokenizer)
    taken = sorted(taken_examples(found, config), key=lambda each: -each["tokens"])
    prompt = prompt_tokens(taken[: room.prompt.examples], config, room, tokenizer)
    needed = prompt + config.query_tokens + room.max_tokens
    return (
        f"examples: the longest {room.prompt.examples} of {len(taken)} make a prompt of {prompt:,} tokens ("
        f"{room.prompt.layout}); with {config.query_tokens:,} for the query and {room.max_tokens:,} for the response "
        f"that is {needed:,} of {room.max_model_len:,} (serving.policy.max_model_len)"
    )


def rank(examples: Sequence[dict[str, Any]], reward_model: Ref, store: Store, servers: Servers) -> list[dict[str, Any]]:
    """The candidates in descending order of the reward of query and solution; the reward model never sees thoughts.

    Raises:
        ValueError: a reward is not finite.
    """
    tokenizer = load_tokenizer(fetch_model(store, reward_model, servers.work_dir))
    ids = [reward_input_ids(tokenizer, each["query"], each["solution"]) for each in examples]
    classifier = Classifier(partial(servers.reward, reward_model))
    rewards = asyncio.run(classifier.logits(ids, max_in_flight=IN_FLIGHT))
    for each, reward in zip(examples, rewards, strict=True):
        if not math.isfinite(reward):
            raise ValueError(f"the reward model gave {reward} for example {each['example_id']}, not a finite number")
        each["reward"] = reward
    return sorted(examples, key=lambda each: -each["reward"])


def reject_near_duplicates(ranked: Sequence[dict[str, Any]], config: ExamplesConfig) -> None:
    """Reject candidates whose query or answer is a near-duplicate of that of a better one."""
    texts = {
        "query": [each["query"] for each in ranked],
        "answer": [f"{each['thoughts']}\n\n{each['solution']}" for each in ranked],
    }
    for part, compared in texts.items():
        for earlier, later, share in near_duplicates(compared, config.near_duplicates):
            why = f"its {part} is a near-duplicate ({share:.0%}) of {ranked[earlier]['example_id']}"
            reject(ranked[later], "near-duplicate", why)


@step(serves={"reward_model": "reward"})
def choose_examples(
    plan: Plan,
    store: Store,
    *,
    config: ExamplesConfig,
    servers: Servers,
    model: Ref | None = None,
    room: Room | None = None,
    reward_model: Ref | None = None,
) -> Ref:
    """Check every candidate and write the table `examples`, in the candidates' order.

    The manifest's counts hold the funnel (`read`, `rejected: RULE`, `taken`), the topics, and the results of the checks
    of each candidate (`candidates`).

    Args:
        model: its tokenizer measures whether the candidates fit `room`; if omitted, this is not checked.
        reward_model: ranks the candidates that pass the checks; if omitted, they keep their order.

    Raises:
        BadInput: a candidate cannot be read, too few can be taken, or a required topic has none.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir)) if model and room else None
    ranking = partial(rank, reward_model=reward_model, store=store, servers=servers) if reward_model else None
    found = judged(config, room, tokenizer, ranking)
    taken = taken_examples(found, config)
    counts = {
        "read": len(found),
        **Counter(f"rejected: {each['rejected']}" for each in found if each["rejected"]),
        "taken": len(taken),
        "topics": dict(Counter(each["topic"] for each in taken)),
        "candidates": [{name: each[name] for name in SHOWN} for each in found],
    }
    rows = [
        {**{name: each[name] for name in EXAMPLES.names if name != "actions"}, "actions": sorted(each["evidence"])}
        for each in taken
    ]
    return write_table(store, plan.step, plan.key, EXAMPLES, [rows], plan.provenance, counts=counts)
