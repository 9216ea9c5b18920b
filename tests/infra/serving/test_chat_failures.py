"""Chats that fail: a wrong key, outages, waits that a provider asks for, a server that is gone."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chats import KEY, answer, ask

from infra.serving.chat_completions import Reply
from infra.serving.completions import CompletionError, DeniedError

pytestmark = pytest.mark.usefixtures("at_once")


# ---- refusals of everything


@pytest.mark.parametrize("status", [401, 402, 404, 405])
@pytest.mark.parametrize(
    "body", [{"error": {"message": "no: KEY"}}, {"detail": "no: KEY"}, b"no: KEY", {"error": "KEY"}]
)
def test_a_wrong_key_or_address_ends_all_after_one_request_without_the_key(endpoint, caplog, status, body):
    text = (body if isinstance(body, bytes) else json.dumps(body).encode()).replace(b"KEY", KEY.encode())
    endpoint.reply = lambda _: (status, text)
    with caplog.at_level(logging.DEBUG), pytest.raises(DeniedError) as error:
        ask(endpoint.url, 20, headers={"Authorization": f"Bearer {KEY}"})
    assert str(error.value).startswith(f"chat c0: the server answered {status}: ")
    assert KEY not in f"{error.value!r} {error.getrepr(style='long')} {caplog.text}"
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308])
@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("https://judge.example/v1/chat/completions", "https://judge.example/v1/chat/completions"),
        (f"https://me:PASSWORD@judge.example/{KEY}/v1?key=PASSWORD", "https://judge.example/(the key)/v1"),
        (None, "another address"),
    ],
)
def test_a_redirect_ends_all_and_names_the_new_address_without_keys(endpoint, status, location, said):
    endpoint.reply = lambda _: (status, b"", {"Location": location} if location else {})
    with pytest.raises(DeniedError) as error:
        ask(endpoint.url, 5, headers={"Authorization": f"Bearer {KEY}"})
    assert str(error.value) == f"chat c0: the server redirects to {said}: give that address"
    assert len(endpoint.asked) == 1


# ---- one odd reply amid good ones


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ((404, {"error": {"message": "No endpoints found matching your data policy"}}), "404: No endpoints found"),
        ((200, {"error": {"message": "no provider", "code": 404}}), "404: no provider"),
        ((200, b"[" * 100_000), "chat c1: expected a JSON object, got '[[["),
        ((400, b"[" * 100_000), "400: [[["),
        ((400, b"[" * 900 + b"]" * 900), "400: [[["),
        ((200, [answer()]), "chat c1: expected a JSON object, got '[{"),
        ((400, b"no", {"Content-Type": "text/plain; charset=hex"}), "400: no"),
        ((400, b'{"error": {"message": "no \\ud83d"}}'), "400: no ?"),
        ((204, b""), "chat c1: expected a JSON object, got ''"),
    ],
)
def test_one_odd_reply_is_one_refusal_and_the_others_go_on(endpoint, odd, reason):
    endpoint.reply = lambda number: odd if number == 2 else (200, answer())
    found = ask(endpoint.url, 3, max_in_flight=1)
    assert found["c0"] == found["c2"] == Reply("[[7]]", "stop", 11, 5)
    assert isinstance(found["c1"], str)
    assert found["c1"].startswith(reason)


# ---- failures


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_reply_that_cannot_be_decompressed_is_retried(endpoint, coding):
    garbled = (200, b"not compressed", {"Content-Encoding": coding})
    endpoint.reply = lambda number: garbled if number == 2 else (200, answer())
    assert list(ask(endpoint.url, 3).values()) == [Reply("[[7]]", "stop", 11, 5)] * 3
    assert len(endpoint.asked) == 4


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


@pytest.mark.parametrize(
    "outage",
    [
        {"error": {"code": 429, "message": "later"}, "user_id": "x"},
        {"error": {"code": "502", "message": "later"}},
        {"error": {"type": "overloaded_error", "message": "later"}, "type": "error"},
        {"error": {"code": "rate_limit_exceeded", "message": "later"}},
        {"error": {"status": "UNAVAILABLE", "message": "later"}},
        {"error": {"status": 503}},
        {"error": "later", "status": 503},
        {"error": {"message": "later"}, "code": "503"},
    ],
)
def test_an_outage_that_a_gateway_reports_with_200_is_retried(endpoint, outage):
    endpoint.reply = lambda number: (200, outage) if number < 3 else (200, answer())
    assert ask(endpoint.url)["c0"] == Reply("[[7]]", "stop", 11, 5)
    assert len(endpoint.asked) == 3


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("header", ["1", "1.2", lambda: http_date(2.5)])
def test_retry_after_is_honoured_and_is_no_failed_attempt(endpoint, status, header):
    """Eight requests at once to a provider that takes one a moment: none is given up after its third attempt."""
    endpoint.reply = lambda number: (
        (status, {"error": {"message": "slow down"}}, {"Retry-After": header() if callable(header) else header})
        if number < 3
        else (200, answer())
    )
    began = time.monotonic()
    assert ask(endpoint.url, attempts=1)["c0"] == Reply("[[7]]", "stop", 11, 5)
    assert time.monotonic() - began >= 2.0 * (1 if header == "1" or callable(header) else 1.2) * 0.99
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize("header", ["0", "", "soon", "nan", "-5"])
def test_a_retry_after_that_says_nothing_counts_as_none(endpoint, header):
    endpoint.reply = lambda _: (429, {"error": {"message": "no"}}, {"Retry-After": header})
    with pytest.raises(CompletionError, match="429: no"):
        ask(endpoint.url)
    assert len(endpoint.asked) == 3


def test_a_provider_that_puts_off_until_tomorrow_ends_all(endpoint):
    endpoint.reply = lambda _: (429, {"error": {"message": "quota of the day"}}, {"Retry-After": "80000"})
    with pytest.raises(CompletionError, match="429: quota of the day"):
        ask(endpoint.url)
    assert len(endpoint.asked) == 1


def test_the_log_of_a_retry_has_no_key(endpoint, caplog):
    endpoint.reply = lambda number: (429, {"error": {"message": f"{KEY} is busy"}}) if number < 3 else (200, answer())
    with caplog.at_level(logging.DEBUG):
        ask(endpoint.url, headers={"Authorization": f"Bearer {KEY}"})
    assert "is busy" in caplog.text
    assert KEY not in caplog.text


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
