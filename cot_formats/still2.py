"""The format of STILL-2 (arXiv 2412.09413), Sky-T1 and OpenThoughts-114k, with blank lines as in Sky-T1."""

from cot_formats.tagged import tagged
from cot_formats.types import Parsed

NAME = "still2"
FORMAT = tagged(
    "<|begin_of_thought|>\n\n{thoughts}\n\n"
    "<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
)


def parse(text: str, opened: bool = False) -> Parsed:
    """Split a response. `opened`: the prompt ended with `<|begin_of_thought|>`. Raises nothing."""
    return FORMAT.parse(text, opened)


def render(thoughts: str, solution: str) -> str:
    """Render a response. Raises `ValueError` if a part is blank, unstripped or contains a delimiter."""
    return FORMAT.render(thoughts, solution)
