"""QwQ-32B-Preview's free text: it has no delimiters, and the thoughts run on until the answer.

The solution is what follows the last "Final Answer" heading; without a heading, everything from the paragraph with the
last \\boxed{} on; without a box, the last paragraph. Paragraphs are separated by empty lines.

Nothing closes a solution, so that the text alone cannot always tell whether it was cut off. Signs of a cut are a box,
maths or code that is never closed, a heading that is only begun, and, without heading and box, a last paragraph that
ends in mid-sentence. A cut at the end of a sentence, or anywhere in plain words under a heading, leaves no sign:
whoever knows how the text ended says so (`ended`).
"""

from cot_formats.cut import BOXED, BREAK, cut_off, ends_mid_sentence
from cot_formats.types import Parsed, Violation, check_part

HEADINGS = tuple(
    BREAK + mark
    for mark in ("**Final Answer**", "**Final Answer:**", "# Final Answer", "## Final Answer", "### Final Answer")
)


def parse(text: str, ended: bool | None = None) -> Parsed:
    """Split a response. Raises nothing.

    `ended`: whether its author ended it, as opposed to a limit of tokens; None if that is not known. If free text was
    cut before a heading or a box, all of it is thoughts.
    """
    end, start = _split(text)
    marked = BOXED in text or end != start
    if not marked and (begun := _cut_before_the_answer(text, ended)) is not None:
        end, start = begun, len(text)
    thoughts, solution = text[:end].strip() or None, text[start:].strip() or None
    faults = []
    if thoughts is None:
        faults.append(Violation("missing_thoughts", 0, "no paragraph before the solution"))
    if solution is None:
        missing = Violation("missing_solution", len(text), "no heading, box or whole paragraph for it")
        faults.append(
            Violation("empty_solution", start, "nothing after the heading") if thoughts and marked else missing
        )
    elif sign := "a heading is only begun" if _ends_in_a_heading(text, end, solution) else cut_off(solution, ended):
        faults.append(Violation("unclosed_solution", start, sign))
    return Parsed(thoughts, solution, tuple(faults))


def render(thoughts: str, solution: str) -> str:
    """Render a response, with the solution under a heading.

    Raises `ValueError` if a part is blank or unstripped, or if the solution contains such a heading itself or leaves
    something open, as if it were cut off.
    """
    check_part("thoughts", thoughts)
    check_part("solution", solution)
    text = f"{thoughts}{HEADINGS[0]}{BREAK}{solution}"
    parsed = parse(text)
    if (parsed.thoughts, parsed.solution) != (thoughts, solution):
        raise ValueError("the solution contains a Final Answer heading, at which parsing would split it")
    if parsed.violations:
        raise ValueError(f"the solution reads as if it were cut off: {parsed.violations[0].detail}")
    return text


def is_recognisable(text: str) -> bool:
    """Whether free text marks its answer with a heading or a box and has thoughts before it."""
    parsed = parse(text)
    marked = BOXED in text or any(_last(text, heading) >= 0 for heading in HEADINGS)
    return marked and parsed.thoughts is not None and parsed.solution is not None


def _cut_before_the_answer(text: str, ended: bool | None) -> int | None:
    """Where the thoughts end in a text without heading and box that was cut within them; None if it was not."""
    if (begun := _heading_begun(text)) >= 0:
        return begun
    unfinished = ended is None and BREAK in text.strip() and ends_mid_sentence(text)
    return len(text) if unfinished or ended is False else None


def _ends_in_a_heading(text: str, end: int, solution: str) -> bool:
    """Whether a solution ends with the beginning of another heading. Where that is all of it (`end` is where the
    thoughts end), it must be more than one word: a lone mark or word may be an answer."""
    return _heading_begun(solution) >= 0 or (len(solution.split()) > 1 and _heading_begun(text[end:]) >= 0)


def _heading_begun(text: str) -> int:
    """Where the last paragraph starts, if it is only the beginning of a heading; else -1."""
    text = text.rstrip()
    start = text.rfind(BREAK)
    begun = any(text[start:] != heading and heading.startswith(text[start:]) for heading in HEADINGS)
    return start if start >= 0 and begun else -1


def _last(text: str, heading: str, start: int = 0) -> int:
    """Where a heading is last, from `start` on; -1 if it is nowhere. "# Final Answers" is another one."""
    found = text.rfind(heading, start)
    while found >= 0 and not heading.endswith("**") and text[(end := found + len(heading)) : end + 1].strip(": \t\n"):
        found = text.rfind(heading, start, found)
    return found


def _split(text: str) -> tuple[int, int]:
    """Where the thoughts end and where the solution starts; these differ if a heading is between them."""
    end, start = -1, 0
    for heading in HEADINGS:
        later = _last(text, heading, start)
        if later >= 0:
            end, start = later, later + len(heading)
    if end >= 0:
        return end, start + text.startswith(":", start)
    boxed = text.rfind(BOXED)
    start = text.rfind(BREAK, 0, boxed if boxed >= 0 else len(text.rstrip()))
    return max(start, 0), max(start, 0)
