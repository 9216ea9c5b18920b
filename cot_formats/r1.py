"""The format of DeepSeek-R1, QwQ-32B, Qwen3 and OpenThoughts: the solution is all text after `</think>`.

Nothing closes a solution. Its text alone shows a cut only by a box, maths or code that is never closed; a cut in plain
words leaves no sign: whoever knows how the text ended says so (`ended`).
"""

from cot_formats.tagged import tagged
from cot_formats.types import Parsed

NAME = "r1"
FORMAT = tagged("<think>\n{thoughts}\n</think>\n\n{solution}")


def parse(text: str, opened: bool = False, ended: bool | None = None) -> Parsed:
    """Split a response. Raises nothing.

    `opened`: the prompt ended with `<think>`. `ended`: whether the text's author ended it, as opposed to a limit of
    tokens; None if that is not known.
    """
    return FORMAT.parse(text, opened, ended)


def render(thoughts: str, solution: str) -> str:
    """Render a response.

    Raises `ValueError` if a part is blank, unstripped or contains a delimiter, or if the solution leaves something
    open.
    """
    return FORMAT.render(thoughts, solution)
