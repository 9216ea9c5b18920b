"""Sources of long-form thoughts of another model: files and data sets in the layouts in which such sets are published.

The texts are in one field (STILL-2's `combined_text`), in two (thoughts and solution), or in the assistant's turn of a
conversation, whose thoughts may be a field of the turn (`reasoning_content`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator

from cot_formats import TAGGED, detect
from cot_formats.responses import LongFormat, delimiters, parse_response
from infra.errors import BadInput
from tasks.queries.fields import encodable, reference_answer
from tasks.queries.sources import FIELDS, Skipped, Source, first_turn, records_or_faults, text_field
from tasks.queries.turns import NoQuery, assistant_turn, is_conversation, names_of

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a turn, or of a message, that providers put the thoughts into."""
CONVERSATIONS = tuple(FIELDS[layout] for layout in ("messages", "conversations", "conversation"))


class DistilledSource(Source):
    """A file or data set of queries with another model's thoughts and solutions: set `path` or `dataset`."""

    column: str = Field(
        "question",
        description="Field with the query, in the layout `column`: a text, or a list with a text or message per turn.",
    )
    topic: str = Field("domain", description="Field with the query's topic.")
    text: str = Field(
        "combined_text", description="Field with thoughts and solution in one text, in the layout `column`."
    )
    thoughts: str | None = Field(
        None, description="Field with the thoughts, if they and the solution are in fields of their own."
    )
    solution: str | None = Field(None, description="Field with the solution; needed with `thoughts`, unless continued.")
    format: LongFormat | None = Field(
        None,
        description="Format of the texts; if omitted, it is recognised in each of them by its delimiters. Free text "
        "(`qwq`) is not recognised: any answer looks like it.",
    )
    continued: bool = Field(
        False,
        description="The texts are thoughts without a solution for the reader, such as QwQ-Preview's free text. A "
        "model trained on the other sources writes the solutions, as STILL-2 did.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.thoughts is not None and not self.thoughts.strip():
            raise ValueError("thoughts is empty: name the field with the thoughts, or leave it out")
        if self.thoughts and self.thoughts == self.solution:
            raise ValueError(f"thoughts and solution are both {self.solution}: if one field has both, use `text`")
        if self.thoughts and (self.text != "combined_text" or self.format):
            raise ValueError("text or format is set beside thoughts, and would be ignored: leave it out")
        if self.solution and not self.thoughts:
            raise ValueError("solution is set without thoughts: name the fields of both, or use `text`")
        if self.thoughts and not self.solution and not self.continued:
            raise ValueError("thoughts is set without solution: name its field, or set `continued`")
        if self.solution and self.continued:
            raise ValueError(
                f"the texts are `continued`, so that the field {self.solution} would be ignored: leave out one"
            )
        return self


def texts_of(source: DistilledSource, skipped: Skipped) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
    """Each record's row number, its query, and its responses with `thoughts`, `solution` and `violations`.

    A record may have several texts, as a list. `skipped` counts records without a query or text that can be used.

    Raises:
        BadInput: as `tasks.queries.sources.records`; or more than 1 % of the records are malformed.
    """
    for row, record in records_or_faults(source, whole=True):
        where = f"{source.place}, row {row}"
        try:
            if isinstance(record, BadInput):
                raise record
            yield row, first_turn(record, source, where), responses_of(record, source, where)
        except NoQuery as reason:
            skipped.reasons[str(reason)] += 1
        except BadInput as fault:
            skipped.malformed(fault, row)


def responses_of(record: dict[str, Any], source: DistilledSource, where: str) -> list[dict[str, Any]]:
    """The columns `thoughts`, `solution` and `violations` of each of a record's texts. A continued one has no solution.

    Empty texts among others are left out. One text in one field and several in the other belong to each other.

    Raises:
        NoQuery: there is no text.
        BadInput: a field is missing or not a text; source, row and field are named.
    """
    if source.thoughts:
        thoughts = texts_in(record, source.thoughts, where)
        solutions: list[str | None] = texts_in(record, source.solution, where) if source.solution else [None]
        if min(len(thoughts), len(solutions)) > 1 and len(thoughts) != len(solutions):
            raise BadInput(
                f"{where}: {len(thoughts)} texts in the field {source.thoughts}, {len(solutions)} in "
                f"{source.solution}: expected as many"
            )
        most = max(len(thoughts), len(solutions))
        thoughts, solutions = (each * most if len(each) == 1 else each for each in (thoughts, solutions))
        both = zip_longest(thoughts, solutions)  # of an empty list, all parts are missing
        return some(parts(*each, source) for each in both if any(part and part.strip() for part in each))
    layout, field = text_field(record, source, where)
    if source.text in record or layout == "alpaca":
        name = source.text if source.text in record else "output"
        return some(whole(text, source) for text in texts_in(record, name, where) if text and text.strip())
    if layout == "column":  # the query has a column of its own, the answer has not
        field = next((name for name in CONVERSATIONS if is_conversation(record.get(name))), "")
    if not field:
        raise BadInput(
            f"{where}: expected a field {source.text}, found {names_of(record)}: set `text`, or `thoughts` and "
            "`solution`, to the fields with the texts"
        )
    turn = assistant_turn(record[field], field, where)
    text = encodable(turn["text"], field, where)
    apart = next(
        (turn[name] for name in THOUGHT_FIELDS if isinstance(turn.get(name), str) and turn[name].strip()), None
    )
    return [parts(encodable(apart, field, where), text, source) if apart else whole(text, source)]


def some(responses: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The responses. Raises `NoQuery` if there are none."""
    found = list(responses)
    if not found:
        raise NoQuery("no text")
    return found


def texts_in(record: dict[str, Any], field: str, where: str) -> list[str | None]:
    """The text in a field, or the texts in a list of them; a number counts as one. Raises `BadInput` if the field is
    missing or holds anything else."""
    if field not in record:
        raise BadInput(
            f"{where}: expected a field {field}, found {names_of(record)}: set `text`, or `thoughts` and `solution`, "
            "to the fields with the texts (and `column` to the field with the query)"
        )
    held = record[field]
    return [reference_answer({field: each}, field, where) for each in (held if isinstance(held, list) else [held])]


def parts(thoughts: str | None, solution: str | None, source: DistilledSource) -> dict[str, Any]:
    """The columns of thoughts and a solution that come apart. Delimiters around them are taken off; of a whole response
    in either field, only the field's own part is taken.

    Raises:
        NoQuery: both are empty.
    """
    if not thoughts and not solution:
        raise NoQuery("no text")
    held = {"thoughts": own_part(thoughts or "", "thoughts"), "solution": own_part(solution or "", "solution")}
    if source.continued:
        held["solution"] = None
    missing = [f"missing_{name}" for name, part in held.items() if part is None]
    return {**held, "violations": [] if source.continued and held["thoughts"] else missing}


def own_part(text: str, name: Literal["thoughts", "solution"]) -> str | None:
    """One part of a response without its delimiters; None if it is empty.

    A delimiter that is only mentioned, within a line, is a part of the text.
    """
    text = unix(text).strip()
    if (format := detect(text)) in TAGGED and delimits(tags := delimiters(cast(LongFormat, format)), text):
        alone = text.removeprefix(tags[0]).removesuffix(tags[1]).strip()
        if name == "thoughts" and not any(tag in alone for tag in tags):
            return alone or None
        text = parse_response(text, cast(LongFormat, format), opened=tags[0] not in text)[name] or text
    return (without_answer_tags(text) if name == "solution" else text).strip() or None


def delimits(tags: tuple[str, ...], text: str) -> bool:
    """Whether a text begins with one of the format's delimiters. If the prompt opened the thoughts, the one that closes
    them must be at the beginning or the end of a line."""
    closes = rf"^[^\S\n]*{re.escape(tags[1])}|{re.escape(tags[1])}[^\S\n]*$"
    return text.startswith(tags) or (tags[0] not in text and bool(re.search(closes, text, re.MULTILINE)))


def without_answer_tags(solution: str) -> str:
    """A solution without the one `<answer>` around all of it, which R1's followers write after the thoughts."""
    found = re.fullmatch(r"\s*<answer>((?:(?!</?answer>).)*)</answer>\s*", solution, re.DOTALL)
    return (found[1] if found else solution).strip()


def unix(text: str) -> str:
    """A text with the line ends of Unix."""
    return text.replace("\r\n", "\n")


def whole(text: str, source: DistilledSource) -> dict[str, Any]:
    """The columns of a text that holds thoughts and solution. The prompt may have opened the thoughts, as R1's does.

    Free text is no format that can be recognised: any answer looks like it.
    """
    text = unix(text)
    recognised = detect(text)
    format = source.format or cast(LongFormat | None, recognised if recognised in TAGGED else None)
    tags = delimiters(format) if format else ()
    opened = bool(tags) and tags[0] not in text and tags[1] in text
    if source.continued and not tags:
        return parts(text, None, source)
    if format is None:
        return {"thoughts": None, "solution": None, "violations": ["no known format"]}
    found = parse_response(text, format, opened)
    if source.continued:
        return parts(found["thoughts"], None, source) if found["thoughts"] else {**found, "solution": None}
    solution = without_answer_tags(found["solution"] or "")
    emptied = ["empty_solution"] if found["solution"] and not solution else []  # nothing but <answer></answer>
    return {**found, "solution": solution or None, "violations": [*found["violations"], *emptied]}
