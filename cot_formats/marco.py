"""Marco-o1's format (AIDC-AI/Marco-o1), with line breaks as in its CoT_demo.json."""

from cot_formats.tagged import tagged
from cot_formats.types import Parsed

NAME = "marco"
FORMAT = tagged("<Thought>\n{thoughts}\n</Thought>\n<Output>\n{solution}\n</Output>")


def parse(text: str, opened: bool = False) -> Parsed:
    """Split a response. `opened`: the prompt ended with `<Thought>`. Raises nothing."""
    return FORMAT.parse(text, opened)


def render(thoughts: str, solution: str) -> str:
    """Render a response. Raises `ValueError` if a part is blank, unstripped or contains a delimiter."""
    return FORMAT.render(thoughts, solution)
