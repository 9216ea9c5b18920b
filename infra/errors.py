"""Errors that the user can put right."""

from __future__ import annotations


class BadInput(ValueError):
    """An input of the user's is not what was expected; the text says what, where and how to fix it."""
