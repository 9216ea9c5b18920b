"""The parser of all delimited formats, which differ only in their delimiters and the whitespace between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from cot_formats.cut import cut_off
from cot_formats.types import Parsed, Violation, check_part

DELIMITERS = ("open_thoughts", "close_thoughts", "open_solution", "close_solution")
EXCERPT = 40  # characters of stray text in a violation's detail


@dataclass(frozen=True, slots=True)
class Section:
    """Where a section is in the text: `inner` spans its content, `outer` also its delimiters."""

    name: str
    outer: tuple[int, int]
    inner: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tagged:
    """A delimited format: its layout, and its delimiters in order; four, or two if the solution has none."""

    layout: str
    tags: tuple[str, ...]

    def parse(self, text: str, opened: bool = False, ended: bool | None = None) -> Parsed:
        """Split a response. Any whitespace around delimiters is allowed, and none is required.

        A solution without a closing delimiter counts as cut off if it leaves something open (`left_open`).

        Args:
            opened: the prompt ended with the first delimiter, as with chat templates of R1-like models, so that the
                text starts inside the thoughts; another first delimiter in the text is a repeat.
            ended: whether the text's author ended it, as opposed to a limit of tokens; None if that is not known.
        """
        at = [text.find(tag) for tag in self.tags]
        ambiguous = [*self._repeats(text, at, opened), *_disorder(at[1:] if opened else at)]
        faults = [*ambiguous, *self._missing(text, at, opened)]
        sections = [] if ambiguous else self._sections(text, at, opened)
        faults += _strays(text, sections)
        parts = {section.name: text[slice(*section.inner)].strip() or None for section in sections}
        faults += [
            Violation(f"empty_{section.name}", section.inner[0], "nothing but whitespace")
            for section in sections
            if parts[section.name] is None
        ]
        thoughts, solution = parts.get("thoughts"), parts.get("solution")
        if len(self.tags) == 2 and solution and (sign := cut_off(solution, ended)):
            faults.append(Violation("unclosed_solution", at[1], sign))
        faults.sort(key=lambda fault: fault.offset)
        return Parsed(thoughts, solution, tuple(faults))

    def render(self, thoughts: str, solution: str) -> str:
        """Render a response.

        Raises `ValueError` if a part is blank, unstripped or contains a delimiter, or if nothing closes the solution
        and it leaves something open, as if it were cut off.
        """
        for what, part in (("thoughts", thoughts), ("solution", solution)):
            check_part(what, part)
            for tag in self.tags:
                if tag in part:
                    raise ValueError(f"the {what} contains the delimiter {tag} at {part.find(tag)}")
        if len(self.tags) == 2 and (sign := cut_off(solution)):
            raise ValueError(f"the solution reads as if it were cut off: {sign}")
        return self.layout.format(thoughts=thoughts, solution=solution)

    def _repeats(self, text: str, at: list[int], opened: bool) -> Iterator[Violation]:
        for name, tag, first in zip(DELIMITERS, self.tags, at, strict=False):
            inherited = opened and name == "open_thoughts"
            second = first if inherited or first < 0 else text.find(tag, first + len(tag))
            if second >= 0:
                number = text.count(tag) + inherited
                yield Violation(f"repeated_{name}", second, f"{tag} {number} times")

    def _missing(self, text: str, at: list[int], opened: bool) -> Iterator[Violation]:
        """Violations for the delimiters that are missing."""
        begun, ended = 0 if opened else at[0], at[1]
        if begun < 0 and ended < 0:
            yield Violation("missing_thoughts", 0, f"no {self.tags[0]}")
        elif begun < 0:
            yield Violation("missing_open_thoughts", ended, f"{self.tags[1]} without {self.tags[0]}")
        elif ended < 0:
            yield Violation("unclosed_thoughts", begun, f"no {self.tags[1]}")
        if len(self.tags) == 2:
            if ended < 0:
                yield Violation("missing_solution", len(text), f"no {self.tags[1]} for it to follow")
            return
        begun, ended = at[2:]
        if begun < 0 and ended < 0:
            yield Violation("missing_solution", len(text), f"no {self.tags[2]}")
        elif begun < 0:
            yield Violation("missing_open_solution", ended, f"{self.tags[3]} without {self.tags[2]}")
        elif ended < 0:
            yield Violation("unclosed_solution", begun, f"no {self.tags[3]}")

    def _sections(self, text: str, at: list[int], opened: bool) -> list[Section]:
        """The sections whose bounds are certain; no delimiter may be repeated or out of order."""
        ends = [offset + len(tag) for offset, tag in zip(at, self.tags, strict=True)]
        size = len(text)
        has_open, has_close = opened or at[0] >= 0, at[1] >= 0
        start, inside = (at[0], ends[0]) if at[0] >= 0 else (0, 0)
        if len(self.tags) == 2:
            solution = Section("solution", (ends[1], size), (ends[1], size)) if has_close else None
            next_at = size
        elif at[2] >= 0:
            close, after = (at[3], ends[3]) if at[3] >= 0 else (size, size)
            solution = Section("solution", (at[2], after), (ends[2], close))
            next_at = at[2]
        elif at[3] >= 0:  # never opened: it starts where the thoughts are closed, else its start is unknown
            solution = Section("solution", (ends[1], ends[3]), (ends[1], at[3])) if has_close else None
            next_at = -1
        else:
            solution, next_at = None, size
        found = []
        if has_close:
            found.append(Section("thoughts", (start, ends[1]), (inside, at[1])))
        elif has_open and next_at >= 0:
            found.append(Section("thoughts", (start, next_at), (inside, next_at)))
        return [*found, solution] if solution else found


def tagged(layout: str) -> Tagged:
    """The format with this `layout`: delimiters, whitespace, and the fields {thoughts} and {solution}."""
    tags = layout.replace("{thoughts}", " ").replace("{solution}", " ").split()
    return Tagged(layout, tuple(tags))


def _disorder(at: list[int]) -> Iterator[Violation]:
    seen = [offset for offset in at if offset >= 0]
    for before, after in pairwise(seen):
        if after < before:
            yield Violation("out_of_order", after, f"should follow the delimiter at {before}")
            return


def _strays(text: str, sections: list[Section]) -> Iterator[Violation]:
    """Violations for visible text outside the sections."""
    if not sections:
        return
    outside = [("text_before", 0, sections[0].outer[0]), ("text_after", sections[-1].outer[1], len(text))]
    if len(sections) == 2:
        outside.append(("text_between", sections[0].outer[1], sections[1].outer[0]))
    for name, start, end in outside:
        stray = text[start:end].lstrip()
        if stray:
            yield Violation(name, end - len(stray), stray.rstrip()[:EXCERPT])
