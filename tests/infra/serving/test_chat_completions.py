"""What a chat model is sent, and how each kind of answer is handled; the server is a fake, HTTP is real."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from endpoint import Endpoint
from tenacity import wait_none

import infra.serving.completions
from infra.serving.chat_completions import Chat, Reply, chat
from infra.serving.completions import CompletionError

KEY = "sk-planted-51c0ffee"
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "how good is it?"}]


def answer(content: Any = "[[7]]", **changes: Any) -> dict[str, Any]:
    """A chat completion as OpenAI's API returns it."""
    message = {"role": "assistant", "content": content, "reasoning_content": "let me think"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage, **changes}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(lambda _: (200, answer()))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.serving.completions, "wait_exponential_jitter", lambda **_: wait_none())


def ask(url: str, count: int = 1, **more: Any) -> dict[str, Reply]:
    found: dict[str, Reply] = {}
    chats = (Chat(f"c{number}", MESSAGES) for number in range(count))
    settings = {"temperature": 0.5, "max_tokens": 9, "alive": lambda: None, "attempts": 3, "max_in_flight": 4, **more}
    asyncio.run(
        chat(url, "judge", chats, on_reply=lambda each, reply: found.update({each.request_id: reply}), **settings)
    )
    return found


# ---- asking


def test_a_reply_is_the_answer_without_the_thoughts(endpoint):
    assert ask(endpoint.url) == {"c0": Reply("[[7]]", "stop", 11, 5)}
    expected = {"model": "judge", "messages": MESSAGES, "temperature": 0.5, "max_tokens": 9}
    assert endpoint.asked == [expected]


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_on_v1(endpoint, ending):
    ask(endpoint.url + ending)
    ask(f"{endpoint.url}/api{ending}")
    assert endpoint.paths == ["/v1/chat/completions", "/api/v1/chat/completions"]


def test_headers_go_with_every_request(endpoint):
    ask(endpoint.url, 3, headers={"Authorization": f"Bearer {KEY}"})
    assert endpoint.keys == [f"Bearer {KEY}"] * 3
    ask(endpoint.url)
    assert endpoint.keys[-1] is None


def test_a_constraint_is_sent_when_given(endpoint):
    ask(endpoint.url, constraint={"regex": "yes|no"})
    assert endpoint.asked[0]["structured_outputs"] == {"regex": "yes|no"}


def test_chats_in_flight_are_bounded_and_each_is_sent_once(endpoint):
    found = ask(endpoint.url, 40)
    assert sorted(found) == sorted(f"c{number}" for number in range(40))
    assert len(endpoint.asked) == 40
    assert 1 <= endpoint.max_open <= 4


# ---- answers


def test_null_content_is_an_empty_text(endpoint):
    """From a reasoning model that was cut while thinking, or a model that refuses."""
    cut = answer(None)
    cut["choices"][0]["finish_reason"] = "length"
    endpoint.reply = lambda _: (200, cut)
    assert ask(endpoint.url)["c0"] == Reply("", "length", 11, 5)
    cut["choices"][0]["finish_reason"] = None
    assert ask(endpoint.url)["c0"] == Reply("", "", 11, 5)


def test_a_lone_surrogate_can_be_stored(endpoint):
    endpoint.reply = lambda _: (200, json.dumps(answer("good \ud83d [[7]]")).encode())
    text = ask(endpoint.url)["c0"].text
    assert text.encode()
    assert text.endswith(" [[7]]")


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "overloaded"}},
        {"choices": []},
        answer(choices=[]),
        answer(choices=None),
        answer(choices=[{"text": "[[7]]", "finish_reason": "stop"}]),
        answer(choices=[{"message": None, "finish_reason": "stop"}]),
        answer(usage=None),
        answer(usage={"prompt_tokens": 3}),
        answer(usage={"prompt_tokens": 3, "completion_tokens": None}),
        answer([{"type": "text", "text": "[[7]]"}]),
        answer(7),
        [answer()],
        "[[7]]",
        None,
        b"<html>please log in</html>",
        b"",
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_not_a_chat_completion_is_an_error_that_names_the_chat(endpoint, body):
    endpoint.reply = lambda _: (200, body)
    with pytest.raises(CompletionError, match=r"^chat c0: expected "):
        ask(endpoint.url)
    assert len(endpoint.asked) == 1


# ---- failures


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_transient_failures_are_retried(endpoint, status):
    endpoint.reply = lambda number: (status, {"error": {"message": "later"}}) if number < 3 else (200, answer())
    assert ask(endpoint.url)["c0"].text == "[[7]]"
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_lasting_failure_ends_with_the_servers_message(endpoint, status):
    endpoint.reply = lambda _: (status, {"error": {"message": "quota used up"}})
    with pytest.raises(CompletionError, match=rf"^chat c0: the server answered {status}: quota used up$"):
        ask(endpoint.url)
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@pytest.mark.parametrize(
    "body", [{"error": {"message": "no: KEY"}}, {"detail": "no: KEY"}, b"no: KEY", {"error": "KEY"}]
)
def test_a_refusal_is_an_error_at_once_without_the_key(endpoint, caplog, status, body):
    """Even if the server repeats the key."""
    text = (body if isinstance(body, bytes) else json.dumps(body).encode()).replace(b"KEY", KEY.encode())
    endpoint.reply = lambda _: (status, text)
    with caplog.at_level(logging.DEBUG), pytest.raises(CompletionError) as error:
        ask(endpoint.url, headers={"Authorization": f"Bearer {KEY}"})
    assert str(error.value).startswith(f"chat c0: the server answered {status}: ")
    assert KEY not in f"{error.value!r} {error.getrepr(style='long')} {caplog.text}"
    assert len(endpoint.asked) == 1


def test_the_log_of_a_retry_has_no_key(endpoint, caplog):
    endpoint.reply = lambda number: (429, {"error": {"message": f"{KEY} is busy"}}) if number < 3 else (200, answer())
    with caplog.at_level(logging.DEBUG):
        ask(endpoint.url, headers={"Authorization": f"Bearer {KEY}"})
    assert "is busy" in caplog.text
    assert KEY not in caplog.text


def test_one_refusal_ends_the_run_and_keeps_what_came_before(endpoint):
    endpoint.reply = lambda number: (200, answer()) if number < 6 else (400, {"error": {"message": "too long"}})
    kept: list[str] = []
    chats = (Chat(f"c{number}", MESSAGES) for number in range(50))
    with pytest.raises(CompletionError, match=r"^chat c5: .* too long"):
        asyncio.run(
            chat(
                endpoint.url,
                "judge",
                chats,
                temperature=0,
                max_tokens=1,
                on_reply=lambda each, _: kept.append(each.request_id),
                alive=lambda: None,
                max_in_flight=1,
            )
        )
    assert kept == ["c0", "c1", "c2", "c3", "c4"]
    assert len(endpoint.asked) == 6


def test_an_unreachable_endpoint_is_an_error_that_names_the_chat(endpoint):
    endpoint.close()
    with pytest.raises(CompletionError, match=r"^chat c0: ConnectError"):
        ask(endpoint.url)


def test_a_dead_server_is_reported_by_alive(endpoint):
    def alive() -> None:
        raise RuntimeError("the server's last words")

    with pytest.raises(RuntimeError, match="last words"):
        ask(endpoint.url, alive=alive)
    assert endpoint.asked == []
