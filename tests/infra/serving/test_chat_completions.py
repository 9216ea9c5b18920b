"""What a chat model is sent, and how each kind of answer is handled; the server is a fake, HTTP is real."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from chats import KEY, MESSAGES, answer, ask
from pydantic import SecretStr

from infra.serving.chat_completions import Reply, key_header

pytestmark = pytest.mark.usefixtures("at_once")


# ---- asking


def test_a_reply_is_the_answer_without_the_thoughts(endpoint):
    assert ask(endpoint.url) == {"c0": Reply("[[7]]", "stop", 11, 5)}
    expected = {"model": "judge", "messages": MESSAGES, "temperature": 0.5, "max_tokens": 9}
    assert endpoint.asked == [expected]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/openai/v1", "/openai/v1/chat/completions"),  # Groq
        ("/api/v1/", "/api/v1/chat/completions"),  # OpenRouter
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),  # Google
        ("/compatible-mode/v1", "/compatible-mode/v1/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),  # the whole address, as documentation shows it
        ("/chat/completions", "/chat/completions"),
        (
            "/openai/deployments/x?api-version=2024-10-21",
            "/openai/deployments/x/chat/completions?api-version=2024-10-21",
        ),
        ("?api-version=1", "/v1/chat/completions?api-version=1"),
    ],
)
def test_a_base_path_of_any_provider_is_used_as_it_is(endpoint, given, asked):
    ask(endpoint.url + given)
    assert endpoint.paths == [asked]


@pytest.mark.parametrize(
    ("query", "sent"),
    [("", (f"Bearer {KEY}", None)), ("?api-version=2024-10-21", (None, KEY)), ("?x=1", (f"Bearer {KEY}", None))],
)
def test_azures_key_has_a_header_of_its_own(endpoint, query, sent):
    url = f"{endpoint.url}/openai/deployments/x{query}"
    ask(url, headers=key_header(url, SecretStr(KEY)))
    assert (endpoint.keys[0], endpoint.azure_keys[0]) == sent
    assert key_header(url, None) == {}


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
    ("content", "text"),
    [
        ([{"type": "text", "text": "[[7]]"}], "[[7]]"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "[[3]]"}]}, {"type": "text", "text": "[[7]]"}],
            "[[7]]",
        ),
        ([{"text": "[[7]]"}], "[[7]]"),
        ([{"thinking": "[[3]]"}, {"text": "[[7]]", "annotations": []}], "[[7]]"),
        ([{"type": "text", "text": "so: "}, {"type": "output_text", "text": "[[7]]"}], "so: [[7]]"),
        ([], ""),
    ],
)
def test_content_may_come_in_parts(endpoint, content, text):
    endpoint.reply = lambda _: (200, answer(content))
    assert ask(endpoint.url) == {"c0": Reply(text, "stop", 11, 5)}


def test_a_message_without_content_and_usage_in_part_are_answers(endpoint):
    """Gemini's answer when it was cut while thinking."""
    choice = {"index": 0, "message": {"role": "assistant"}, "finish_reason": "length"}
    endpoint.reply = lambda _: (200, answer(choices=[choice], usage={"prompt_tokens": 3, "total_tokens": 10}))
    assert ask(endpoint.url) == {"c0": Reply("", "length", 3, 7)}
    endpoint.reply = lambda _: (200, answer(usage=None))
    assert ask(endpoint.url) == {"c0": Reply("[[7]]", "stop", 0, 0)}


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ("none", (0, 0)),
        ([1], (0, 0)),
        (3, (0, 0)),
        ({"prompt_tokens": float("inf"), "completion_tokens": 2}, (0, 2)),
        ({"prompt_tokens": float("nan"), "completion_tokens": -2}, (0, 0)),
        ({"prompt_tokens": "11", "completion_tokens": 10**30}, (11, 0)),
        ({"prompt_tokens": {"text": 3}, "total_tokens": 7.0}, (0, 7)),
    ],
)
def test_a_usage_that_cannot_be_counts_no_tokens_and_keeps_the_answer(endpoint, usage, counts):
    endpoint.reply = lambda _: (200, answer(usage=usage))
    assert ask(endpoint.url) == {"c0": Reply("[[7]]", "stop", *counts)}


def test_any_status_of_success_is_an_answer(endpoint):
    endpoint.reply = lambda _: (201, answer())
    assert list(ask(endpoint.url, 2).values()) == [Reply("[[7]]", "stop", 11, 5)] * 2
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "overloaded"}},
        {"error": "overloaded"},
        {"choices": []},
        answer(choices=[]),
        answer(choices=None),
        answer(choices=[{"text": "[[7]]", "finish_reason": "stop"}]),
        answer(choices=[{"message": None, "finish_reason": "stop"}]),
        answer(7),
        answer(["[[7]]"]),
        [answer()],
        "[[7]]",
        None,
        b"<html>please log in</html>",
        b"",
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_not_a_chat_completion_is_a_refusal_with_its_reason(endpoint, body):
    endpoint.reply = lambda number: (200, answer()) if number == 1 else (200, body)
    found = ask(endpoint.url, 2)
    assert found["c0"] == Reply("[[7]]", "stop", 11, 5)
    assert "expected" in str(found["c1"]) or "overloaded" in str(found["c1"])
    assert len(endpoint.asked) == 2


# ---- refusals: the fault of one chat


FILTERED = {
    "error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
    }
}


@pytest.mark.parametrize("status", [400, 403, 413, 422])
@pytest.mark.parametrize(
    "body", [FILTERED, {"detail": "no: KEY"}, b"no: KEY", [{"error": {"code": 400, "message": "KEY"}}]]
)
def test_a_refused_chat_is_skipped_with_its_reason_and_the_others_go_on(endpoint, caplog, status, body):
    """The reason never has the key, even if the server repeats it."""
    text = (body if isinstance(body, bytes) else json.dumps(body).encode()).replace(b"KEY", KEY.encode())
    endpoint.reply = lambda number: (status, text) if number % 2 else (200, answer())
    with caplog.at_level(logging.DEBUG):
        found = ask(endpoint.url, 6, headers={"Authorization": f"Bearer {KEY}"}, max_in_flight=1)
    assert [found[f"c{number}"] for number in (1, 3, 5)] == [Reply("[[7]]", "stop", 11, 5)] * 3
    assert all(str(found[f"c{number}"]).startswith(f"{status}: ") for number in (0, 2, 4))
    assert KEY not in f"{found} {caplog.text}"
    assert len(endpoint.asked) == 6


@pytest.mark.parametrize(
    ("content", "changes", "finish_reason", "reason"),
    [
        (None, {"refusal": "I can't help with that."}, "stop", "I can't help with that."),
        ("", {"refusal": "no \ud83d"}, "stop", "no ?"),
        ([{"type": "refusal", "refusal": "I can't."}], {}, "stop", "I can't."),
        ("The ass", {}, "content_filter", "finish_reason content_filter"),
        (None, {}, "content_filter: PROHIBITED_CONTENT", "finish_reason content_filter: PROHIBITED_CONTENT"),
        (None, {}, "SAFETY", "finish_reason SAFETY"),
        ("[[7]]", {"refusal": None}, "stop", None),
        ("[[7]]", {"refusal": "but"}, "stop", None),
    ],
)
def test_a_model_that_refuses_or_is_filtered_gives_its_reason(endpoint, content, changes, finish_reason, reason):
    told = answer(content)
    told["choices"][0]["message"] |= changes
    told["choices"][0]["finish_reason"] = finish_reason
    endpoint.reply = lambda _: (200, json.dumps(told).encode())
    reply = ask(endpoint.url)["c0"]
    assert isinstance(reply, Reply)
    assert reply.refusal == reason
    assert reply.text == (content if isinstance(content, str) else "")


# ---- settings that an endpoint refuses


def refused(message: str, param: str | None = None, code: str = "unsupported_parameter") -> tuple[int, Any]:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return 400, {"error": error}


def reasoning_model(body: dict[str, Any]) -> tuple[int, Any]:
    """What OpenAI's o-series answers."""
    if "max_tokens" in body:
        what = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return refused(what, "max_tokens")
    if body.get("temperature", 1) != 1:
        what = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."
        return refused(what, "temperature", "unsupported_value")
    if body["messages"][0]["role"] == "system":
        what = "Unsupported value: 'messages[0].role' does not support 'system' with this model."
        return refused(what, "messages[0].role", "unsupported_value")
    return 200, answer()


def taciturn(body: dict[str, Any]) -> tuple[int, Any]:
    """A gateway that names the parameter and says nothing else."""
    odd = next((name for name in ("temperature", "max_tokens") if name in body), None)
    return (
        (422, {"detail": [{"loc": ["body", odd], "msg": "Extra inputs are not permitted"}]}) if odd else (200, answer())
    )


@pytest.mark.parametrize("in_flight", [1, 4])
def test_settings_that_a_provider_refuses_are_learnt_once(endpoint, caplog, in_flight):
    endpoint.reply = lambda number: reasoning_model(endpoint.asked[number - 1])
    found = ask(endpoint.url, 20, temperature=0, max_in_flight=in_flight)
    changes = (
        "max_completion_tokens in place of max_tokens",
        "no temperature (its own default)",
        "the system turn as a part of the user's",
    )
    assert list(found.values()) == [Reply("[[7]]", "stop", 11, 5, changes=changes)] * 20
    assert len(endpoint.asked) == 3 + 20
    turn = {"role": "user", "content": "be kind\n\nhow good is it?"}
    assert endpoint.asked[-1] == {"model": "judge", "max_completion_tokens": 9, "messages": [turn]}
    assert [record.getMessage() for record in caplog.records if record.name.endswith("chat_completions")] == [
        f"the endpoint of the chats refuses a setting and is sent {change}" for change in changes
    ]


def test_a_refusal_that_only_names_the_parameter_is_enough(endpoint):
    endpoint.reply = lambda number: taciturn(endpoint.asked[number - 1])
    found = ask(endpoint.url, 3)
    assert [reply.text for reply in found.values()] == ["[[7]]"] * 3
    assert endpoint.asked[-1] == {"model": "judge", "max_completion_tokens": 9, "messages": MESSAGES}


@pytest.mark.parametrize(
    "said",
    [
        "System role not supported",  # Gemma's template, behind vLLM
        "Conversation roles must alternate user/assistant/user/assistant/...",  # Mistral's first ones
        "Only user and assistant roles are supported!",
        "Developer instruction is not enabled for models/gemma-3-27b-it",  # Google's API
        "'system' is not supported with this model",
        "This model does not support system messages",
    ],
)
def test_a_template_without_a_system_turn_gets_it_in_the_user_turn(endpoint, said):
    def reply(number: int) -> tuple[int, Any]:
        system = any(turn["role"] == "system" for turn in endpoint.asked[number - 1]["messages"])
        return (400, {"object": "error", "message": said, "code": 400}) if system else (200, answer())

    endpoint.reply = reply
    found = ask(endpoint.url, 3)
    assert [reply.text for reply in found.values()] == ["[[7]]"] * 3
    assert [len(body["messages"]) for body in endpoint.asked] == [2, 1, 1, 1]


ECHO = {"model": "judge", "temperature": 0, "max_tokens": 9, "messages": MESSAGES}


@pytest.mark.parametrize(
    "refusal",
    [
        refused("Your request was rejected as a result of our safety system. Your prompt may hold what it forbids."),
        refused("The system flagged this message."),
        refused("The prompt asks for forbidden role-play."),
        (422, {"detail": [{"loc": ["body"], "msg": "unsafe", "input": ECHO}]}),
        (400, {"error": {"message": "unsafe"}, "request": ECHO}),
        (400, {"error": {"message": "unsafe"}, "messages": [{"role": "user", "content": "which temperature?"}]}),
        (403, {"error": {"message": "unsafe: temperature, max_tokens, system role"}}),
        (413, {"error": {"message": "too long: max_tokens"}}),
    ],
)
def test_one_chats_refusal_does_not_change_how_the_others_are_asked(endpoint, refusal):
    endpoint.reply = lambda number: refusal if number == 2 else (200, answer())
    found = ask(endpoint.url, 4, max_in_flight=1)
    assert str(found.pop("c1")).startswith(f"{refusal[0]}: ")
    assert list(found.values()) == [Reply("[[7]]", "stop", 11, 5)] * 3
    assert endpoint.asked == [endpoint.asked[0]] * 4


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "Provider returned error", "metadata": {"raw": "'max_tokens' is not supported"}}},
        {"error": "max_tokens: unknown field"},
        {"errors": [{"field": "max_tokens", "reason": "unknown"}]},
        b"unknown field max_tokens",
    ],
)
def test_a_complaint_of_any_form_is_learnt_from(endpoint, said):
    endpoint.reply = lambda number: (400, said) if "max_tokens" in endpoint.asked[number - 1] else (200, answer())
    assert [reply.text for reply in ask(endpoint.url, 2).values()] == ["[[7]]"] * 2
    assert len(endpoint.asked) == 3


def test_what_does_not_help_is_not_learnt(endpoint):
    """A prompt that is too long: the refusal names max_tokens, but another name for it changes nothing."""
    long = {"error": {"message": "the prompt has 9000 tokens and max_tokens is 9, of 8192 in all"}}
    endpoint.reply = lambda number: (400, long) if number < 3 else (200, answer())
    found = ask(endpoint.url, 2)
    assert found == {"c0": f"400: {long['error']['message']}", "c1": Reply("[[7]]", "stop", 11, 5)}
    assert [sorted(body)[0] for body in endpoint.asked] == ["max_tokens", "max_completion_tokens", "max_tokens"]
