"""DeepSeek-R1's format, also QwQ-32B's, Qwen3's and OpenThoughts': the solution is all that follows `</think>`."""

from cot_formats.tagged import tagged
from cot_formats.types import Parsed

NAME = "r1"
FORMAT = tagged("<think>\n{thoughts}\n</think>\n\n{solution}")


def parse(text: str, opened: bool = False) -> Parsed:
    """Split a response; `opened` where the prompt already ended with `<think>`. Raises nothing."""
    return FORMAT.parse(text, opened)


def render(thoughts: str, solution: str) -> str:
    """Write a response. Raises `ValueError` if a part is blank, unstripped or holds a delimiter."""
    return FORMAT.render(thoughts, solution)
