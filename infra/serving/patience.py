"""How often and how long a request is tried: with exponential back-off, or when the server says (`Retry-After`)."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from tenacity import RetryCallState, wait_exponential_jitter

LONGEST_PUT_OFF_S = 3600.0
"""Seconds for which a server may put one request off, in all its attempts together."""


class Patience:
    """The rule for one request: at most `attempts`, not counting those that the server puts off.

    An error with a number `put_off_s` says that the server asked for as many seconds of patience. It is given at most
    `LONGEST_PUT_OFF_S`.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts, self._counted, self._put_off_s = attempts, 0, 0.0
        self._back_off = wait_exponential_jitter(initial=0.25, max=20, jitter=0.25)

    def is_over(self, state: RetryCallState) -> bool:
        """Whether to give up after an attempt that failed."""
        put_off_s = _put_off_s(state)
        self._put_off_s += put_off_s or 0
        self._counted += not put_off_s
        return self._counted >= self._attempts or self._put_off_s > LONGEST_PUT_OFF_S

    def wait_s(self, state: RetryCallState) -> float:
        """Seconds until the next attempt."""
        return max(_put_off_s(state) or 0, self._back_off(state))


def _put_off_s(state: RetryCallState) -> float | None:
    return getattr(state.outcome.exception(), "put_off_s", None) if state.outcome else None


def retry_after_s(response: httpx.Response) -> float | None:
    """The seconds that the server asks to wait: a number or a date in `Retry-After`; None if it does not say."""
    text = response.headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
