"""Chats with a fake endpoint over real HTTP, for the tests of chat completions."""

from __future__ import annotations

import asyncio
from typing import Any

from infra.serving.chat_completions import Chat, Reply, chat

KEY = "sk-planted-51c0ffee"
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "how good is it?"}]


def answer(content: Any = "[[7]]", **changes: Any) -> dict[str, Any]:
    """A chat completion as OpenAI's API returns it."""
    message = {"role": "assistant", "content": content, "reasoning_content": "let me think"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage, **changes}


def ask(url: str, count: int = 1, messages: Any = MESSAGES, **more: Any) -> dict[str, Reply | str]:
    """By id, the reply to each chat, or the reason for which it was refused."""
    found: dict[str, Reply | str] = {}
    chats = (Chat(f"c{number}", messages) for number in range(count))
    settings = {"temperature": 0.5, "max_tokens": 9, "alive": lambda: None, "attempts": 3, "max_in_flight": 4, **more}

    def keep(each: Chat, got: Reply | str) -> None:
        found[each.request_id] = got

    asyncio.run(chat(url, "judge", chats, on_reply=keep, on_refused=keep, **settings))
    return found
