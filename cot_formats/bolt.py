"""This project's own format for BOLT's internal thoughts and external solution (the paper states no format)."""

from cot_formats.tagged import tagged
from cot_formats.types import Parsed

NAME = "bolt"
FORMAT = tagged(
    "<internal_thoughts>\n{thoughts}\n</internal_thoughts>\n\n<external_solution>\n{solution}\n</external_solution>"
)


def parse(text: str, opened: bool = False) -> Parsed:
    """Split a response. `opened`: the prompt ended with `<internal_thoughts>`. Raises nothing."""
    return FORMAT.parse(text, opened)


def render(thoughts: str, solution: str) -> str:
    """Render a response. Raises `ValueError` if a part is blank, unstripped or contains a delimiter."""
    return FORMAT.render(thoughts, solution)
