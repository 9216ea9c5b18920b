"""RLMT's format (arXiv 2509.20357, princeton-pli/RLMT); its line breaks are this project's choice."""

from cot_formats.tagged import tagged
from cot_formats.types import Parsed

NAME = "rlmt"
FORMAT = tagged("<think>\n{thoughts}\n</think>\n\n<response>\n{solution}\n</response>")


def parse(text: str, opened: bool = False) -> Parsed:
    """Split a response. `opened`: the prompt ended with `<think>`. Raises nothing."""
    return FORMAT.parse(text, opened)


def render(thoughts: str, solution: str) -> str:
    """Render a response. Raises `ValueError` if a part is blank, unstripped or contains a delimiter."""
    return FORMAT.render(thoughts, solution)
