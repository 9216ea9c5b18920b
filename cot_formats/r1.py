"""The format of DeepSeek-R1, QwQ-32B, Qwen3 and OpenThoughts: the solution is all text after `</think>`."""

from cot_formats.tagged import tagged
from cot_formats.types import Parsed

NAME = "r1"
FORMAT = tagged("<think>\n{thoughts}\n</think>\n\n{solution}")


def parse(text: str, opened: bool = False) -> Parsed:
    """Split a response. `opened`: the prompt ended with `<think>`. Raises nothing."""
    return FORMAT.parse(text, opened)


def render(thoughts: str, solution: str) -> str:
    """Render a response. Raises `ValueError` if a part is blank, unstripped or contains a delimiter."""
    return FORMAT.render(thoughts, solution)
