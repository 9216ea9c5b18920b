"""QwQ-32B-Preview's free text: it has no delimiters, and the thoughts run on until the answer.

The solution is what follows the last "Final Answer" heading; without a heading, everything from the paragraph with the
last \\boxed{} on; without a box, the last paragraph. Paragraphs are separated by empty lines. Truncated free text
cannot be distinguished from complete text: use the finish reason for that.
"""

from cot_formats.types import Parsed, Violation, check_part, trimmed

NAME = "qwq"
BREAK = "\n\n"
BOXED = "\\boxed{"
HEADINGS = tuple(
    BREAK + mark
    for mark in ("**Final Answer**", "**Final Answer:**", "# Final Answer", "## Final Answer", "### Final Answer")
)


def parse(text: str) -> Parsed:
    """Split a response. Raises nothing."""
    end, start = _split(text)
    thoughts, thoughts_span = trimmed(text, 0, end)
    solution, solution_span = trimmed(text, start, len(text))
    faults = []
    if thoughts is None:
        faults.append(Violation("missing_thoughts", 0, "no paragraph before the solution"))
    if solution is None:
        blank = Violation("missing_solution", len(text), "no text")
        faults.append(Violation("empty_solution", start, "nothing after the heading") if thoughts else blank)
    return Parsed(thoughts, solution, tuple(faults), thoughts_span, solution_span)


def render(thoughts: str, solution: str) -> str:
    """Render a response, with the solution under a heading.

    Raises `ValueError` if a part is blank or unstripped, or if the solution contains such a heading itself.
    """
    check_part("thoughts", thoughts)
    check_part("solution", solution)
    text = f"{thoughts}{HEADINGS[0]}{BREAK}{solution}"
    parsed = parse(text)
    if (parsed.thoughts, parsed.solution) != (thoughts, solution):
        raise ValueError("the solution contains a Final Answer heading, at which parsing would split it")
    return text


def is_recognisable(text: str) -> bool:
    """Whether free text marks its answer with a heading or a box and has thoughts before it."""
    return (BOXED in text or any(heading in text for heading in HEADINGS)) and parse(text).ok


def _split(text: str) -> tuple[int, int]:
    """Where the thoughts end and where the solution starts."""
    end, start = -1, 0
    for heading in HEADINGS:
        later = text.rfind(heading, start)
        if later >= 0:
            end, start = later, later + len(heading)
    if end >= 0:
        return end, start + text.startswith(":", start)
    boxed = text.rfind(BOXED)
    start = text.rfind(BREAK, 0, boxed if boxed >= 0 else len(text.rstrip()))
    return max(start, 0), max(start, 0)
