"""What a server's answer says of a failure, in whatever form it comes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx

PASSING = re.compile("overload|rate_limit|server_error|timeout|unavailable", re.IGNORECASE)
_ECHOES = {"input", "content", "prompt"}  # fields in which a server repeats what it was sent


def status_of_failure(answer: dict[str, Any]) -> int | None:
    """The status of a failure that a gateway reports with HTTP 200; None if the answer is none."""
    if not answer.get("error") or answer.get("choices") or answer.get("data"):
        return None
    places = [answer["error"], answer] if isinstance(answer["error"], dict) else [answer]
    said = [str(place.get(name)) for place in places for name in ("code", "status", "type")]
    if codes := [int(each) for each in said if re.fullmatch("[45][0-9][0-9]", each)]:
        return codes[0]
    return 503 if any(map(PASSING.search, said)) else 400


def answer_of(response: httpx.Response) -> Any:
    """A response's JSON, or its text if it is none, or nested too deeply."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return _text(response)


def _text(response: httpx.Response) -> str:
    return response.content.decode(errors="replace")  # the charset that it names may be no text encoding


def error_text(response: httpx.Response, answer: Any) -> str:
    """The server's error message. If it repeats the API key that it was sent, the key is removed."""
    try:
        text = str(answer["error"]["message"])
    except (KeyError, TypeError):  # not vLLM's error form: show the body as it is
        text = _text(response)
    return without_key(text, response.request.headers)[:2000]


def complaint_of(answer: Any) -> str:
    """The words of a server's answer, one value per line, without the names of fields and without what it repeats."""
    found = [answer]
    for each in found:  # which grows
        if isinstance(each, dict):
            found += [value for name, value in each.items() if name not in _ECHOES]
        elif isinstance(each, list):
            found += each
    return "\n".join(str(each) for each in found if not isinstance(each, dict | list))


def without_key(text: str, headers: Mapping[str, str]) -> str:
    """A server's text without the API key that it was sent in these headers."""
    for key in (headers.get("Authorization", "").removeprefix("Bearer "), headers.get("api-key", "")):
        text = text.replace(key, "(the key)") if key else text
    return text
