"""Exploration (STILL-2): a model's own solutions of hard problems, as data to train it on again."""
