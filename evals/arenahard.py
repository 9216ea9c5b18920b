"""Arena-Hard v0.1 (500 prompts) and v2.0 (500 hard prompts, 250 of creative writing), judged as their authors do.

Each answer is compared with the baseline's twice: it is assistant B in game 1 and assistant A in game 2. The judge ends
with one of five labels, which `tally` turns into battles; `evals.style_control` computes the figures. Source of the
rules and of the judge's prompts: lmarena/arena-hard-auto (Apache-2.0): gen_judgment.py, show_result.py,
utils/judge_utils.py, config. Three things differ on purpose: a label that is not in the authors' table is unreadable
(their v0.1 gives it no weight, their v2.0 stops with an error), one in code or in a quotation is none, and an answer
cannot close the marks around it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evals.problem import Message, Problem, bad_field, text_field
from evals.style_control import Style, Version
from evals.templates import system_and_user
from evals.verdict_text import unquoted

BASELINES: dict[str, str] = {
    "arena-hard-v0.1": "gpt-4-0314",
    "hard_prompt": "o3-mini-2025-01-31",
    "coding": "o3-mini-2025-01-31",
    "math": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
}
"""The baseline model for each category. The authors publish hard_prompt and creative_writing on separate boards."""

_A_MUCH, _A, _TIE, _B, _B_MUCH = (3, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 3)  # battles of A won, tied, lost
_FIVE = {"A>>B": _A_MUCH, "A>B": _A, "A=B": _TIE, "B>A": _B, "B>>A": _B_MUCH}
_LABELS: dict[Version, dict[str, tuple[int, int, int]]] = {
    "v0.1": _FIVE,
    "v2.0": {**_FIVE, "B<<A": _A_MUCH, "B<A": _A, "B=A": _TIE, "A<B": _B, "A<<B": _B_MUCH},
}
_DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
_SINGLE = re.compile(r"\[([AB<>=]+)\]")

_PARTS = re.compile(r"\{(QUESTION|ANSWER_A|ANSWER_B)\}")
_GAP = r"[\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]"  # white space and invisible characters
_MARK = re.compile(
    rf"[<＜](?={_GAP}*+[|｜]{_GAP}*+(?:user{_GAP}++prompt|the{_GAP}++(?:start|end){_GAP}++of{_GAP}++assistant))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt, from a file in the authors' layout."""

    problem_id: str
    model: str
    text: str
    """What the judge sees; never the thoughts, which some files also have."""
    style: Style | None
    """As counted in the file; None if it has no counts."""


def read(record: Mapping[str, Any], row: int) -> Problem:
    """Read a prompt in the authors' layout: uid, category, prompt; or in their older one: question_id, category, turns.

    The category, a key of `BASELINES`, determines the version. v0.1's cluster and v2.0's subcategory are not kept.

    Raises:
        ValueError: a field is missing or malformed; the message names row and field.
    """
    category = record.get("category")
    if not isinstance(category, str) or category not in BASELINES:
        raise bad_field(row, "category", f"one of {', '.join(BASELINES)}", category)
    if "prompt" in record:
        query, field = record["prompt"], "prompt"
    else:
        query, field = _first(record, "turns", row).get("content"), "turns[0].content"
    if not isinstance(query, str) or not query.strip():
        raise bad_field(row, field, "a non-empty string", query)
    return Problem(problem_id=_id(record, row), query=query, category=category)


def read_answer(record: Mapping[str, Any], row: int) -> Answer:
    """Read an answer in the authors' layout: uid, model, messages and, if style was counted, metadata.

    The answer is the last message's content.answer. Their older layout is read too: question_id, model_id,
    choices[0].turns[0].content, conv_metadata.

    Raises:
        ValueError: a field is missing or malformed; the message names row and field.
    """
    if "messages" in record:
        model_field, field, style_field = "model", "messages[-1].content.answer", "metadata"
        messages = record["messages"]
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, dict) or last.get("role") != "assistant":
            raise bad_field(row, "messages[-1]", "a message of the assistant", last)
        content = last.get("content")
        text = content.get("answer") if isinstance(content, dict) else None
    else:
        model_field, field, style_field = "model_id", "choices[0].turns[0].content", "conv_metadata"
        text = _first(_first(record, "choices", row), "turns", row).get("content")
    if not isinstance(text, str):
        raise bad_field(row, field, "a string", text)
    model = record.get(model_field)
    if not isinstance(model, str) or not model:
        raise bad_field(row, model_field, "a non-empty string", model)
    counted = record.get(style_field)
    return Answer(_id(record, row), model, text, None if counted is None else _style(counted, style_field, row))


def judge_messages(problem: Problem, game: Literal[1, 2], answer: str, baseline_answer: str) -> list[Message]:
    """The judge's prompt for a game: in game 1 the baseline is assistant A, in game 2 the model is.

    If an answer spells one of the prompt's marks, the mark's first character is replaced by "(".

    Raises:
        ValueError: the problem is not one of Arena-Hard's.
    """
    if problem.category not in BASELINES:
        raise ValueError(f"problem {problem.problem_id}: category {problem.category!r} is not one of Arena-Hard's")
    shown = [_MARK.sub("(", each) for each in (baseline_answer, answer)]
    a, b = shown if game == 1 else reversed(shown)
    parts = {"QUESTION": problem.query, "ANSWER_A": a, "ANSWER_B": b}
    creative = problem.category == "creative_writing"
    system, user = system_and_user(
        "evals/prompts/arenahard-creative.md" if creative else "evals/prompts/arenahard-hard.md"
    )
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": _PARTS.sub(lambda part: parts[part[1]], user)},
    ]


def version_of(category: str | None) -> Version:
    """The version whose rules apply to a category of prompts."""
    return "v0.1" if category == "arena-hard-v0.1" else "v2.0"


def read_verdict(text: str, version: Version) -> str | None:
    """The label of a verdict, such as A>>B; None if it has none. Raises nothing; takes time linear in the length.

    v0.1: the label in double brackets, if all of those are the same; contradictory ones are unreadable. v2.0: the last
    label in double brackets, or else the last in single ones, in upper or lower case; A<B means B>A and so on. A label
    in code or in a quotation does not count.
    """
    text = unquoted(text)
    if version == "v0.1":
        labels = _DOUBLE.findall(text)
        labels = labels if len(set(labels)) == 1 else []
    else:
        upper = text.upper()
        labels = _DOUBLE.findall(upper) or _SINGLE.findall(upper)
    return labels[-1] if labels and labels[-1] in _LABELS[version] else None


def tally(verdicts: Sequence[str | None], version: Version) -> tuple[int, int, int]:
    """The battles that a model lost, tied and won on one question.

    A label with >> counts as three battles. If one of the two games is unreadable, v0.1 counts the other, v2.0 neither.

    Args:
        verdicts: the labels of game 1 and game 2, None if unreadable.

    Raises:
        ValueError: there are not exactly two verdicts, or one is no label.
    """
    if len(verdicts) != 2:
        raise ValueError(f"expected the verdicts of two games, found {len(verdicts)}")
    unknown = {label for label in verdicts if label is not None and label not in _LABELS[version]}
    if unknown:
        raise ValueError(f"expected labels such as A>>B of {version}, found {sorted(unknown)}")
    if version == "v2.0" and None in verdicts:
        return 0, 0, 0
    first, second = (_LABELS[version][label] if label else (0, 0, 0) for label in verdicts)
    return first[0] + second[2], first[1] + second[1], first[2] + second[0]


def _style(counted: Any, field: str, row: int) -> Style:
    """The style in a file's metadata: token_len, and counts (or objects of counts) of headers, lists and bold."""
    if not isinstance(counted, dict):
        raise bad_field(row, field, "an object", counted)
    sums = []
    for name in ("token_len", "header_count", "list_count", "bold_count"):
        value = counted.get(name)
        numbers: list[Any] = list(value.values()) if isinstance(value, dict) else [value]
        if not all(isinstance(each, int) and each >= 0 for each in numbers):
            raise bad_field(row, f"{field}.{name}", "a count, or an object of counts", value)
        sums.append(sum(numbers))
    return Style(*sums)


def _first(record: Mapping[str, Any], field: str, row: int) -> dict[str, Any]:
    """The single object in a list of the older layouts."""
    value = record.get(field)
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        raise bad_field(row, field, "a list of one object", value)
    return value[0]


def _id(record: Mapping[str, Any], row: int) -> str:
    return text_field(record, "uid" if "uid" in record else "question_id", row)
