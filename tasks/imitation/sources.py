"""Sources of long-form thoughts of another model: files and data sets in the layouts in which such sets are published.

The texts are in one field (STILL-2's `combined_text`), in two (thoughts and solution), or in the assistant's turn of a
conversation, whose thoughts may be a field of the turn (`reasoning_content`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Self, cast

from pydantic import Field, model_validator

from cot_formats import detect
from cot_formats.responses import LongFormat, delimiters, parse_response
from infra.errors import BadInput
from tasks.queries.fields import typed
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
        None, description="Format of the texts; if omitted, it is recognised in each of them."
    )
    continued: bool = Field(
        False,
        description="The texts are thoughts without a solution for the reader, such as QwQ-Preview's free text. A "
        "model trained on the other sources writes the solutions, as STILL-2 did.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.solution and not self.thoughts:
            raise ValueError("solution is set without thoughts: name the fields of both, or use `text`")
        if self.thoughts and not self.solution and not self.continued:
            raise ValueError("thoughts is set without solution: name its field, or set `continued`")
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

    Raises:
        NoQuery: there is no text.
        BadInput: a field is missing or not a text; source, row and field are named.
    """
    if source.thoughts:
        thoughts = texts_in(record, source.thoughts, where)
        solutions = texts_in(record, source.solution, where) if source.solution else [None]
        if len(thoughts) > 1 and len(solutions) not in (1, len(thoughts)):
            raise BadInput(
                f"{where}: {len(thoughts)} texts in the field {source.thoughts}, {len(solutions)} in "
                f"{source.solution}: expected as many"
            )
        both = zip_longest(thoughts, solutions, fillvalue=(thoughts if len(thoughts) == 1 else solutions)[0])
        return [parts(*each, source) for each in both]
    layout, field = text_field(record, source, where)
    if layout == "column" and source.text not in record:  # the query has a column of its own, the answer has not
        field = next((name for name in CONVERSATIONS if is_conversation(record.get(name))), "")
        if not field:
            raise BadInput(
                f"{where}: expected a field {source.text}, found {names_of(record)}: set `text`, or `thoughts` and "
                "`solution`, to the fields with the texts"
            )
    elif layout in ("column", "alpaca"):
        name = source.text if layout == "column" else "output"
        return [whole(text, source) for text in texts_in(record, name, where)]
    turn = assistant_turn(record[field], field, where)
    apart = next((turn[name] for name in THOUGHT_FIELDS if isinstance(turn.get(name), str) and turn[name]), None)
    return [parts(apart, turn["text"], source) if apart else whole(turn["text"], source)]


def texts_in(record: dict[str, Any], field: str, where: str) -> list[str | None]:
    """The text in a field, or the texts in a list of them. Raises `BadInput` if it is missing or neither."""
    if field not in record:
        raise BadInput(f"{where}: expected a field {field}, found {names_of(record)}")
    held = record[field]
    return [typed({field: each}, field, str, where) for each in (held if isinstance(held, list) and held else [held])]


def parts(thoughts: str | None, solution: str | None, source: DistilledSource) -> dict[str, Any]:
    """The columns of thoughts and a solution that come apart. Delimiters at the thoughts' ends are taken off.

    Raises:
        NoQuery: both are empty.
    """
    if not thoughts and not solution:
        raise NoQuery("no text")
    for format in ("r1", "still2", "bolt"):
        opening, closing = delimiters(format)[:2]
        thoughts = thoughts and thoughts.strip().removeprefix(opening).removesuffix(closing)
    held = {"thoughts": (thoughts or "").strip() or None, "solution": (solution or "").strip() or None}
    if source.continued:
        held["solution"] = None
    missing = [f"missing_{name}" for name, part in held.items() if part is None]
    return {**held, "violations": [] if source.continued and held["thoughts"] else missing}


def whole(text: str | None, source: DistilledSource) -> dict[str, Any]:
    """The columns of a text that holds thoughts and solution. The prompt may have opened the thoughts, as R1's does.

    Raises:
        NoQuery: the text is empty.
    """
    if not text or not text.strip():
        raise NoQuery("no text")
    format = source.format or cast(LongFormat | None, detect(text))
    tags = delimiters(format) if format else ()
    opened = bool(tags) and tags[0] not in text and tags[1] in text
    if source.continued:
        thoughts = parse_response(text, format, opened)["thoughts"] if format and tags else text
        return parts(thoughts, None, source)
    if format is None:
        return {"thoughts": None, "solution": None, "violations": ["no known format"]}
    return parse_response(text, format, opened)
