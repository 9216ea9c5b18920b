"""Choosing in-context examples by their text and by what needs a model: length in tokens, and reward."""
