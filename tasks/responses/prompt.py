"""Prompts for sampling: a query, with in-context examples if wanted, as the text that the policy continues."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from cot_formats.responses import PLAIN, Format, delimiters
from infra.errors import BadInput
from infra.text.chat import neutralise, prompt_text
from infra.text.templates import filled
from tasks.examples.read import ExamplesConfig, candidates


class PromptConfig(BaseModel):
    """How in-context examples and the query become a chat prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int = Field(
        3, ge=1, description="Number of in-context examples per prompt, drawn for each query (BOLT: 3 of 10)."
    )
    layout: Literal["one-turn", "turns"] = Field(
        "one-turn",
        description="`one-turn`: one user turn holds all examples and the query, as the paper shows. `turns`: each "
        "example is a user turn with its query and an assistant turn with its response; small models follow this form "
        "far more often. The two templates are used with `one-turn` only.",
    )
    template: Path = Field(
        Path("prompts/in_context.md"), description="File with the text of the user turn; fields {examples} and {query}."
    )
    example_template: Path = Field(
        Path("prompts/example.md"), description="File with the text of one example; fields {query} and {response}."
    )


PROMPT_COLUMNS = ("query_id", "query", "history")
"""The columns of `queries` and `problems` that a prompt is made of."""


def shown_ids(query_id: str, seed: int, prompt: PromptConfig | None, examples: Sequence[dict[str, Any]]) -> list[str]:
    """The ids of the in-context examples that the prompt of a query shows, in order; arguments as `query_prompt`."""
    drawn = draw_examples(examples, prompt.examples, seed, query_id) if prompt else []
    return [example["example_id"] for example in drawn]


def query_prompt(
    query: dict[str, Any],
    tokenizer: Any,
    format: Format,
    seed: int,
    prompt: PromptConfig | None,
    examples: Sequence[dict[str, Any]],
) -> str:
    """The whole chat prompt of a row of `queries` or `problems`, up to where the assistant's answer starts.

    No text in it but the project's own spells control tokens.

    Earlier turns of a benchmark problem (`history`) come before its query. In-context examples go into the last turn,
    or as turns of their own before all others, see `PromptConfig.layout`.

    Args:
        format: of the responses; its delimiters are kept in the examples and in what the model itself wrote before.
        seed: of the draw of examples.
        prompt: how examples are shown; None for none.
        examples: rows of the table `examples` to draw from.

    Raises:
        infra.errors.BadInput: as `in_context_text`.
    """
    text = neutralise(query["query"], tokenizer)
    earlier = [neutralised_turn(turn, tokenizer, format) for turn in json.loads(query.get("history", "[]"))]
    if prompt:
        drawn = draw_examples(examples, prompt.examples, seed, query["query_id"])
        return in_context_text(prompt, drawn, text, tokenizer, format, earlier)
    keep = delimiters(format) if earlier else ()  # safe: those that the query spells are broken already
    return prompt_text(tokenizer, [*earlier, {"role": "user", "content": text}], keep)


def neutralised_turn(turn: dict[str, str], tokenizer: Any, format: Format) -> dict[str, str]:
    """An earlier turn without control tokens; in the assistant's turns the delimiters of thoughts are kept."""
    keep = delimiters(format) if turn["role"] == "assistant" else ()
    return {**turn, "content": neutralise(turn["content"], tokenizer, keep)}


def in_context_text(
    prompt: PromptConfig,
    shown: Sequence[dict[str, Any]],
    query: str,
    tokenizer: Any,
    format: Format,
    earlier: Sequence[dict[str, str]] = (),
) -> str:
    """The whole chat prompt that shows the examples `shown` and asks for a LongCoT response to `query`.

    `earlier`: turns before the query.

    Raises:
        ValueError: as `in_context_turns`.
        infra.errors.BadInput: as `in_context_turns`; or the chat template deletes the thoughts of the examples, as some
            do with all assistant turns but the last.
    """
    *examples, last = in_context_turns(prompt, shown, query, format)
    text = prompt_text(tokenizer, [*examples, *earlier, last], delimiters(format))
    answers = (turn["content"] for turn in examples if turn["role"] == "assistant")
    if any(neutralise(answer, tokenizer, delimiters(format)).strip() not in text for answer in answers):
        raise BadInput(
            "prompt.layout is `turns`, but the model's chat template changes earlier assistant turns (it may "
            "delete their thoughts), so that the examples would not show how to think: set prompt.layout to "
            "`one-turn`"
        )
    return text


def in_context_turns(
    prompt: PromptConfig, shown: Sequence[dict[str, Any]], query: str, format: Format
) -> list[dict[str, str]]:
    """The chat turns that show the examples `shown`; the last one asks for a LongCoT response to `query`.

    Raises:
        ValueError: `format` is `plain`, which cannot show thoughts; or an example cannot be rendered in `format`.
        infra.errors.BadInput: a template lacks a field.
    """
    if format == PLAIN:
        raise ValueError("in-context examples show thoughts: sample in a LongCoT format, not `plain`")
    pairs = [(each["query"], FORMATS[format].render(each["thoughts"], each["solution"])) for each in shown]
    if prompt.layout == "turns":
        turns = [turn for asked, response in pairs for turn in (("user", asked), ("assistant", response))]
        return [{"role": role, "content": content} for role, content in (*turns, ("user", query))]
    examples = [filled(prompt.example_template, query=asked, response=response) for asked, response in pairs]
    return [{"role": "user", "content": filled(prompt.template, examples="\n\n".join(examples), query=query)}]


def first_prompt(
    prompt: PromptConfig, examples: ExamplesConfig, query: dict[str, Any] | None, seed: int, format: Format
) -> str:
    """The first query's prompt, for a dry run: examples are read from the user's files, before any artifact exists.

    Turns are separated by their roles, since the model's chat template is not read.

    `query`: None if the queries are not known yet.
    """
    query = query or {"query_id": "", "query": "(the query: its source is not read in a dry run)"}
    shown = draw_examples(candidates(examples), prompt.examples, seed, query["query_id"])
    turns = in_context_turns(prompt, shown, query["query"], format)
    return turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"[{t['role']}]\n{t['content']}" for t in turns)


def draw_examples(examples: Sequence[dict[str, Any]], count: int, seed: int, query_id: str) -> list[dict[str, Any]]:
    """Draw `count` examples for a query, in table order, so that equal draws share a prompt prefix.

    Every set of `count` examples is equally likely: a hash of seed and query id, modulo the number of sets, is the
    rank of the set in lexicographic order. So a draw depends on nothing else, such as earlier draws.

    Raises:
        ValueError: there are fewer than `count` examples.
    """
    if count > len(examples):
        raise ValueError(
            f"{count} in-context examples per prompt, but the table `examples` holds only {len(examples)}: "
            "lower prompt.examples or add examples"
        )
    digest = hashlib.sha256(f"examples:{seed}:{query_id}".encode()).digest()
    number = int.from_bytes(digest, "big") % math.comb(len(examples), count)
    return list(next(islice(combinations(examples, count), number, None)))
