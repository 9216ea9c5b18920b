"""The first user turn of a conversation, and the answer to it, in the layouts of public data sets.

A turn has a role (`role` or `from`) and a text (`content`, `value` or `text`), which may be a list of parts as in
OpenAI's messages. Turns may be columns too: {"from": [...], "value": [...]}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infra.errors import BadInput

ROLES = ("role", "from")
TEXTS = ("content", "value", "text")
USER = ("user", "human", "prompter")
ASSISTANT = ("assistant", "gpt", "model", "bot", "chatbot")
THINKING = ("thinking", "redacted_thinking")
BEFORE = ("system", "developer", "context", "tool", "function")  # whose turns may come before the user's


class NoQuery(Exception):
    """A record has no query that can be used. The text is the reason, as it is counted."""


def first_user_turn(turns: Any, field: str, where: str) -> str:
    """The text of the first user turn.

    Raises:
        NoQuery: there is none, it is empty or not text alone, or the assistant comes first: then the user's turn
            answers what the reader does not see.
        BadInput: the turns are not in a known layout; `where` and `field` are named.
    """
    for turn in _turns(turns, field, where):
        role = _role(turn, field, where)
        if role in USER:
            return _text(turn, field, where)
        if role not in BEFORE:
            raise NoQuery("the first turn is not the user's")
    raise NoQuery("no user turn")


def assistant_turn(turns: Any, field: str, where: str) -> dict[str, Any]:
    """The turn after the first user turn, with its text as `text`.

    Raises:
        NoQuery: there is none, it is not the assistant's, or it is empty or not text alone.
        BadInput: the turns are not in a known layout; `where` and `field` are named.
    """
    asked = False
    for turn in _turns(turns, field, where):
        role = _role(turn, field, where)
        if asked:
            if role not in ASSISTANT:
                raise NoQuery("the assistant does not answer")
            return {**_thinking(turn), **turn, "text": _text(turn, field, where)}
        asked = role in USER
    raise NoQuery("the assistant does not answer")


def names_of(record: Mapping[str, Any]) -> str:
    """The names of a record's fields, for an error; half a character (a lone surrogate) is shown as its escape."""
    return ", ".join(map(str, record)).encode("utf-8", "backslashreplace").decode()


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _turns(turns: Any, field: str, where: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(turns, dict) and turns and all(isinstance(column, list) for column in turns.values()):
        turns = [dict(zip(turns, turn, strict=False)) for turn in zip(*turns.values(), strict=False)]
    if not isinstance(turns, list):
        raise BadInput(f"{where}: field {field} must be list or absent, found {type(turns).__name__}")
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadInput(f"{where}: field {field} must hold turns, objects with a role, found {type(turn).__name__}")
        yield turn


def _role(turn: Mapping[str, Any], field: str, where: str) -> str:
    """A turn's role in lower case. Raises `BadInput` if it has none."""
    role = next((turn[name] for name in ROLES if turn.get(name) is not None), None)
    if not isinstance(role, str):
        names = names_of(turn) or "none"
        raise BadInput(f"{where}: field {field}: a turn has no string {' or '.join(ROLES)}, found {names}")
    return role.strip().lower()


def _text(turn: Mapping[str, Any], field: str, where: str) -> str:
    content = next((turn[name] for name in TEXTS if turn.get(name) is not None), None)
    if content is None or content == []:
        raise NoQuery("empty")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_parts(content))
    raise BadInput(f"{where}: field {field}: a turn has no string {' or '.join(TEXTS)}")


def _thinking(turn: Mapping[str, Any]) -> dict[str, str]:
    """The thoughts in a turn's parts, as Anthropic's messages have them; empty if there are none."""
    content = turn.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    found = [
        part["thinking"] for part in parts if part.get("type") in THINKING and isinstance(part.get("thinking"), str)
    ]
    return {"thinking": "\n".join(found)} if found else {}


def _parts(parts: Sequence[Any]) -> Iterator[str]:
    """The texts of a turn's parts, thoughts left out. A part without a text is an image, a sound, a file."""
    for part in parts:
        if isinstance(part, dict) and part.get("type") in THINKING:
            continue
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise NoQuery("not text alone")
        yield text
