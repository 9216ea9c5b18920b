"""The prompts of the benchmarks' authors: `evals/prompts/NAME.md`, with source and licence in the front matter."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def template(path: str) -> str:
    """The text of a prompt, such as "evals/prompts/zebralogic.md", without its front matter, which is never sent.

    The code of a benchmark must spell out the whole path, so that cache keys include the file's text.
    """
    text = files("evals").joinpath(path.removeprefix("evals/")).read_text(encoding="utf-8")
    return text.split("\n---\n\n", 1)[1]


@cache
def system_and_user(path: str) -> tuple[str, str]:
    """The system turn and the user turn of a prompt that has both."""
    system, _, user = template(path).removeprefix("## System\n\n").partition("\n\n## User\n\n")
    return system, user.removesuffix("\n")
