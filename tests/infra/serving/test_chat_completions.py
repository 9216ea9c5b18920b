"""What a chat model is sent, and what becomes of each way to answer; the server is a stand-in, HTTP is real."""

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
    """A chat completion as OpenAI's API gives it."""
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
        chat(url, "judge", chats, on_reply=lambda asked, got: found.update({asked.request_id: got}), **settings)
    )
    return found


# ---- asking


def test_a_reply_is_the_answer_without_its_thoughts(endpoint):
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


def test_chats_in_flight_are_bounded_and_each_is_asked_once(endpoint):
    found = ask(endpoint.url, 40)
    assert sorted(found) == sorted(f"c{number}" for number in range(40))
    assert len(endpoint.asked) == 40
    assert 1 <= endpoint.max_open <= 4


# ---- answers


def test_null_content_is_an_empty_text(endpoint):
    """A reasoning model that was cut while it thought, or one that refuses, says nothing."""
    cut = answer(None)
    cut["choices"][0]["finish_reason"] = "length"
    endpoint.reply = lambda _: (200, cut)
    assert ask(endpoint.url)["c0"] == Reply("", "length", 11, 5)
    cut["choices"][0]["finish_reason"] = None
    assert ask(endpoint.url)["c0"] == Reply("", "", 11, 5)


def test_half_a_character_can_be_stored(endpoint):
    endpoint.reply = lambda _: (200, json.dumps(answer("good \ud83d [[7]]")).encode())
    text = ask(endpoint.url)["c0"].text
    assert text.encode()
    assert text.endswith(" [[7]]")


@pytest.mark.parametrize(
    "told",
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
def test_an_answer_in_no_form_of_openais_is_an_error_that_names_the_chat(endpoint, told):
    endpoint.reply = lambda _: (200, told)
    with pytest.raises(CompletionError, match=r"^chat c0: expected "):
        ask(endpoint.url)
    assert len(endpoint.asked) == 1


# ---- failures


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_what_may_heal_is_tried_again(endpoint, status):
    endpoint.reply = lambda number: (status, {"error": {"message": "later"}}) if number < 3 else (200, answer())
    assert ask(endpoint.url)["c0"].text == "[[7]]"
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_lasting_failure_ends_with_the_servers_words(endpoint, status):
    endpoint.reply = lambda _: (status, {"error": {"message": "quota used up"}})
    with pytest.raises(CompletionError, match=rf"^chat c0: the server answered {status}: quota used up$"):
        ask(endpoint.url)
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@pytest.mark.parametrize(
    "told", [{"error": {"message": "no: KEY"}}, {"detail": "no: KEY"}, b"no: KEY", {"error": "KEY"}]
)
def test_a_refusal_is_an_error_at_once_and_holds_no_key(endpoint, caplog, status, told):
    """Also where the server says the key back."""
    text = (told if isinstance(told, bytes) else json.dumps(told).encode()).replace(b"KEY", KEY.encode())
    endpoint.reply = lambda _: (status, text)
    with caplog.at_level(logging.DEBUG), pytest.raises(CompletionError) as error:
        ask(endpoint.url, headers={"Authorization": f"Bearer {KEY}"})
    assert str(error.value).startswith(f"chat c0: the server answered {status}: ")
    assert KEY not in f"{error.value!r} {error.getrepr(style='long')} {caplog.text}"
    assert len(endpoint.asked) == 1


def test_no_key_in_the_log_of_what_is_tried_again(endpoint, caplog):
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
                on_reply=lambda asked, _: kept.append(asked.request_id),
                alive=lambda: None,
                max_in_flight=1,
            )
        )
    assert kept == ["c0", "c1", "c2", "c3", "c4"]
    assert len(endpoint.asked) == 6


def test_an_endpoint_that_is_not_there_is_named_with_the_chat(endpoint):
    endpoint.close()
    with pytest.raises(CompletionError, match=r"^chat c0: ConnectError"):
        ask(endpoint.url)


def test_a_dead_server_is_named_by_alive(endpoint):
    def alive() -> None:
        raise RuntimeError("the server's last words")

    with pytest.raises(RuntimeError, match="last words"):
        ask(endpoint.url, alive=alive)
    assert endpoint.asked == []
