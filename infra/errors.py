"""Errors that the user can put right."""

from __future__ import annotations

from typing import Any


class BadInput(ValueError):
    """The user's input is not as expected; the message says what, where, and how to fix it."""


class GuardError(RuntimeError):
    """A guard stopped the run; the message has its figures, its limit, and which settings to change.

    The same run would be stopped again. Nothing that was finished is lost.

    Attributes:
        summary: the summary of the run, if it was complete when it was stopped.
    """

    summary: dict[str, Any] | None = None
