"""Lengths in a flow's parameters that cannot go together, found before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from infra.serving.servers import ServingConfig
from tasks.responses.generate import GenerateConfig
from tasks.rewards.score import ScoreConfig


def conflicts(config: BaseModel, serving: ServingConfig) -> Iterator[str]:
    """What is wrong with the lengths of all sampling below `config`, one sentence each.

    A response must leave room for its prompt in the policy's `max_model_len`. If it is scored, a solution may be almost
    as long as the response, and must leave room for its query in the reward model's.
    """
    for path, part, around in parts(config):
        if isinstance(part, GenerateConfig):
            scored = any(isinstance(value, ScoreConfig) for _, value in around or ())
            served = {"policy": serving.policy.max_model_len} | (
                {"reward": serving.reward.max_model_len} if scored and getattr(config, "reward_model", None) else {}
            )
            for role, length in served.items():
                if part.max_tokens >= length:
                    room = "its prompt" if role == "policy" else "the query, which is read with the solution"
                    yield (
                        f"{path}.max_tokens is {part.max_tokens:,}, but serving.{role}.max_model_len is {length:,}, "
                        f"which leaves no room for {room}: lower the first, or raise the second"
                    )


def parts(
    part: Any, path: str = "", around: BaseModel | None = None
) -> Iterator[tuple[str, BaseModel, BaseModel | None]]:
    """Every object below `part`: its path, itself, and the object that holds it."""
    if isinstance(part, BaseModel):
        yield path, part, around
        for name, value in part:
            yield from parts(value, f"{path}.{name}" if path else name, part)
    elif isinstance(part, tuple):
        for number, value in enumerate(part):
            yield from parts(value, f"{path}.{number}", around)
