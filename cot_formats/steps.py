"""STILL-1's solutions: steps of one or more sentences, each ended by a delimiter; the last one states the answer.

STILL-1 does not publish its delimiter; that steps are paragraphs and the answer is boxed is this project's choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from cot_formats.types import Violation

VIOLATIONS = {
    "no_steps": "nothing but whitespace; offset 0",
    "repeated_step": "a step is the same as the one before it; offset of the second",
    "missing_answer": "no step states an answer; offset of the text's end",
    "answer_before_the_end": "steps follow the one that states the answer; offset of the first of them",
}

_CLOSED_BY = {"{": "}", "(": ")", "[": "]", "<": ">"}


@dataclass(frozen=True, slots=True)
class Parsed:
    """The steps of a solution, each stripped and without its delimiter, if that is white space. Violations are in
    order of offset, at most one per name."""

    steps: tuple[str, ...]
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether the solution is whole and states its answer at the end."""
        return not self.violations


@dataclass(frozen=True, slots=True)
class Steps:
    """A step-by-step format.

    Attributes:
        delimiter: the text that ends each step.
        answer: the text by which the step with the answer is recognised.
    """

    delimiter: str = "\n\n"
    answer: str = "\\boxed{"

    def __post_init__(self) -> None:
        if not self.delimiter or not self.answer.strip():
            raise ValueError("a step format needs a delimiter and the text by which an answer is recognised")

    def split(self, text: str) -> list[str]:
        """The text cut after each delimiter: joined, the pieces are the text. A piece without words belongs to the
        piece before it, so that no two cuts leave nothing between them."""
        cuts: list[int] = []
        begin = 0
        while begin < len(text):
            found = text.find(self.delimiter, begin)
            end = len(text) if found < 0 else found + len(self.delimiter)
            if not cuts or self.bare(text[begin:end]):
                cuts.append(begin)
            begin = end
        return [text[one:other] for one, other in pairwise([*cuts, len(text)])]

    def bare(self, piece: str) -> str:
        """A piece without white space at its ends; "" if it is only a delimiter."""
        stripped = piece.strip()
        return "" if stripped == self.delimiter.strip() else stripped

    def states_answer(self, piece: str) -> bool:
        """Whether a step states the answer. If the text by which it is recognised opens a bracket, an empty one, as in
        "I will put the answer in \\boxed{}.", states none."""
        closed = _CLOSED_BY.get(self.answer.rstrip()[-1])
        filled = rf"\s*[^\s{re.escape(closed)}]" if closed else ""
        return re.search(re.escape(self.answer) + filled, piece) is not None

    def parse(self, text: str) -> Parsed:
        """The steps of a solution. Raises nothing: faults are returned as violations.

        Whether it was cut off, its finish reason says.
        """
        steps: list[str] = []
        offsets: list[int] = []
        at = 0
        for piece in self.split(text):
            if bare := self.bare(piece):
                steps.append(bare)
                offsets.append(at + len(piece) - len(piece.lstrip()))
            at += len(piece)
        found: list[Violation] = []
        if not steps:
            found.append(Violation("no_steps", 0, "no words"))
        again = next((n for n, (one, two) in enumerate(pairwise(steps), 1) if one == two), None)
        if again is not None:
            found.append(Violation("repeated_step", offsets[again], steps[again][:40]))
        stated = next((n for n, step in enumerate(steps) if self.states_answer(step)), None)
        if stated is None and steps:
            found.append(Violation("missing_answer", len(text), f"no {self.answer!r}"))
        elif stated is not None and stated < len(steps) - 1:
            found.append(Violation("answer_before_the_end", offsets[stated + 1], f"after step {stated + 1}"))
        return Parsed(tuple(steps), tuple(sorted(found, key=lambda each: each.offset)))

    def render(self, steps: tuple[str, ...] | list[str]) -> str:
        """A solution that parses back to exactly these steps.

        A delimiter that has words, such as " .", is a part of each step; one of white space stands between them.

        Raises:
            ValueError: that is impossible: there is no step, one is blank, contains or lacks a delimiter, begins with
                the delimiter's words, or repeats the one before it; or the last, and only the last, does not state the
                answer.
        """
        words = bool(self.delimiter.strip())
        text = (" " if words else self.delimiter).join(steps)
        parsed = self.parse(text)
        if parsed.violations:
            raise ValueError("; ".join(map(str, parsed.violations)))
        if parsed.steps != tuple(steps):
            raise ValueError(
                f"{len(steps)} steps would be read as {len(parsed.steps)}: a step is blank, has or lacks a delimiter, "
                "or begins with one"
            )
        return text
