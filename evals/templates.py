"""The prompts of the benchmarks' authors: `evals/prompts/NAME.md`, whose front matter tells source and licence."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def template(path: str) -> str:
    """The text of a prompt, such as "evals/prompts/zebralogic.md"; its front matter is never sent.

    The whole path stands in the code of the benchmark that uses it, so that cache keys include the file's text.
    """
    text = files("evals").joinpath(path.removeprefix("evals/")).read_text(encoding="utf-8")
    return text.split("\n---\n\n", 1)[1]


@cache
def system_and_user(path: str) -> tuple[str, str]:
    """The two texts of a prompt that has a system turn."""
    system, _, user = template(path).removeprefix("## System\n\n").partition("\n\n## User\n\n")
    return system, user.removesuffix("\n")
