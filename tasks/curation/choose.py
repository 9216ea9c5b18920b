"""The step that writes the table `examples`: which of the candidates are shown to the model (BOLT section 3.1.1)."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from cot_formats import FORMATS
from cot_formats.responses import delimiters
from infra.serving.completions import classify
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import EXAMPLES
from infra.store.store import Store
from infra.store.tables import write_table
from infra.text.chat import count_tokens, load_tokenizer, render_prompt
from infra.text.templates import filled
from tasks.examples.read import ExamplesConfig, candidates, enough, judged, leave, remaining, select
from tasks.queries.overlap import Hashed, near_duplicates, words
from tasks.queries.sources import Source, first_turn, records
from tasks.responses.generate import PromptConfig, in_context_prompt
from tasks.rewards.score import judged_ids

IN_FLIGHT = 8  # requests to the reward model at once: candidates are few
SHARED_WORDS = 13  # a run of words this long in common with an evaluation set counts as taken from there
SHOWN = ("example_id", "topic", "author", "licence", "words", "tokens", "reward", "evidence", "left", "why")


class Room(BaseModel, frozen=True):
    """The context that the examples of one prompt must fit: lengths in tokens of the model's tokenizer."""

    prompt: PromptConfig
    max_tokens: int
    max_model_len: int


def leave_held_out(examples: Sequence[dict[str, Any]], config: ExamplesConfig) -> None:
    """Leave candidates whose query is a near-duplicate of an evaluation set's, or shares a run of 13 words with one."""
    held: dict[str, str] = {}
    for source in (Source(path=str(path)) for path in config.held_out):
        for row, record in records(source):
            where = f"{source.place}, row {row}"
            held[where] = first_turn(record, source, where)
    sources = list(held)
    for earlier, later, share in near_duplicates(
        [*held.values(), *(each["query"] for each in examples)], config.near_duplicates
    ):
        if earlier < len(held) <= later:
            why = f"its query is a near-duplicate ({share:.0%}) of {sources[earlier]}"
            leave(examples[later - len(held)], "held out", why)
    known, _ = Hashed.of([words(query) for query in held.values()]).ngrams(SHARED_WORDS)
    runs, rows = Hashed.of([words(each["query"]) for each in examples]).ngrams(SHARED_WORDS)
    for number in np.unique(rows[np.isin(runs, known)]):
        if examples[number]["left"] is None:
            leave(examples[number], "held out", f"its query shares {SHARED_WORDS} words in a row with a held-out one")


def leave_too_long(examples: Sequence[dict[str, Any]], config: ExamplesConfig, room: Room, tokenizer: Any) -> None:
    """Leave the longest candidates until any `room.prompt.examples` of the others fit the context.

    What must fit: the prompt with the longest examples, `query_tokens` for the query and `max_tokens` for the answer.
    """
    render = FORMATS[config.format].render
    for each in examples:
        response = render(each["thoughts"], each["solution"])
        each["tokens"] = count_tokens(
            tokenizer, filled(room.prompt.example_template, query=each["query"], response=response)
        )
    left = sorted(examples, key=lambda each: -each["tokens"])
    for number, longest in enumerate(left):
        shown = left[number : number + room.prompt.examples]
        text = in_context_prompt(room.prompt, shown, "", config.format)
        prompt = len(render_prompt(tokenizer, [{"role": "user", "content": text}], delimiters(config.format)))
        needed = prompt + config.query_tokens + room.max_tokens
        if len(shown) < room.prompt.examples or needed <= room.max_model_len:
            return
        why = (
            f"with the next longest it makes a prompt of {prompt:,} tokens; with {config.query_tokens:,} for the query "
            f"and {room.max_tokens:,} for the answer (max_tokens) that is {needed:,}, max_model_len is "
            f"{room.max_model_len:,}: shorten it, raise max_model_len, or lower max_tokens"
        )
        leave(longest, "context", why)


def rank(examples: Sequence[dict[str, Any]], reward_model: Ref, store: Store, servers: Servers) -> list[dict[str, Any]]:
    """The candidates by falling reward of (query, solution); the reward model never sees thoughts.

    Raises:
        ValueError: a reward is not finite.
    """
    tokenizer = load_tokenizer(fetch_model(store, reward_model, servers.work_dir))
    ids = [judged_ids(tokenizer, each["query"], each["solution"]) for each in examples]
    server = servers.reward(reward_model)
    rewards = asyncio.run(classify(server.url, server.served_name, ids, max_in_flight=IN_FLIGHT, alive=server.check))
    for each, reward in zip(examples, rewards, strict=True):
        if not math.isfinite(reward):
            raise ValueError(f"the reward model gave {reward} for the example {each['example_id']}")
        each["reward"] = reward
    return sorted(examples, key=lambda each: -each["reward"])


def leave_alike(ranked: Sequence[dict[str, Any]], config: ExamplesConfig) -> None:
    """Of candidates with near-duplicate queries, or near-duplicate answers, leave all but the best."""
    texts = {
        "query": [each["query"] for each in ranked],
        "answer": [f"{each['thoughts']}\n\n{each['solution']}" for each in ranked],
    }
    for what, compared in texts.items():
        for earlier, later, share in near_duplicates(compared, config.near_duplicates):
            why = f"its {what} is a near-duplicate ({share:.0%}) of {ranked[earlier]['example_id']}"
            leave(ranked[later], "near-duplicate", why)


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

    The manifest's counts hold the funnel (`read`, `left: RULE`, `taken`), the topics, and of each candidate what was
    found (`candidates`).

    Args:
        model: whose tokenizer measures the candidates against `room`; without it the context is not looked at.
        reward_model: ranks the candidates that serve; without it they keep their order.

    Raises:
        BadInput: a candidate can't be read, too few can be taken, or a required topic has none.
    """
    found = [judged(each, config) for each in candidates(config)]
    leave_held_out(remaining(found), config)
    if model and room:
        tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
        leave_too_long(remaining(found), config, room, tokenizer)
    serving = remaining(found)
    ranked = rank(serving, reward_model, store, servers) if reward_model and serving else serving
    leave_alike(ranked, config)
    select(remaining(ranked), config)
    taken = enough(found, config)
    left = Counter(f"left: {each['left']}" for each in found if each["left"])
    counts = {
        "read": len(found),
        **left,
        "taken": len(taken),
        "topics": dict(Counter(each["topic"] for each in taken)),
        "candidates": [{name: each[name] for name in SHOWN} for each in found],
    }
    rows = [
        {**{name: each[name] for name in EXAMPLES.names if name != "actions"}, "actions": sorted(each["evidence"])}
        for each in taken
    ]
    return write_table(store, plan.step, plan.key, EXAMPLES, [rows], plan.provenance, counts=counts)
