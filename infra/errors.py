"""Errors that the user can put right."""

from __future__ import annotations


class BadInput(ValueError):
    """The user's input is not as expected; the message says what, where, and how to fix it."""
