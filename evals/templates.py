"""The prompts of the benchmarks' authors: `evals/prompts/NAME.md`, whose front matter tells source and licence."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def template(name: str) -> str:
    """A prompt's text; its front matter is never sent."""
    text = files("evals").joinpath("prompts", f"{name}.md").read_text(encoding="utf-8")
    return text.split("\n---\n\n", 1)[1]


@cache
def system_and_user(name: str) -> tuple[str, str]:
    """The two texts of a prompt that has a system turn."""
    system, _, user = template(name).removeprefix("## System\n\n").partition("\n\n## User\n\n")
    return system, user.removesuffix("\n")
