"""Renders LongCoT data into the trained model's chat template, which need not be that of the model that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cot_formats import FORMATS, TAGGED
from cot_formats.responses import PLAIN, Format, continuation, delimiters, opened_part
from infra.errors import BadInput
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import scan
from infra.text.chat import generation_prefix, load_tokenizer, prompt_text

RENDERED = pa.schema(
    [pa.field("query_id", pa.string()), pa.field("prompt", pa.string()), pa.field("completion", pa.string())]
)
"""`completion` is null where a row cannot be rendered; the trainer counts and skips it."""
BATCH_ROWS = 250


def render_longcot(store: Store, longcot: Ref, model: Path, target: Path) -> Path:
    """Write the rows of `longcot` as the SFT trainer reads them, in the chat template of the folder `model`.

    `prompt` is the whole chat prompt, without in-context examples. `completion` is the response that follows it. What
    the template itself opens at the end of the prompt (`<think>`) is not repeated in it. Rows are streamed.

    Returns `target`, a Parquet file with the columns `query_id`, `prompt` and `completion`.

    Raises:
        BadInput: the tokenizer has no chat template, or one that does not go with the format; a row names an unknown
            format.
    """
    tokenizer = load_tokenizer(model)
    prefix = generation_prefix(tokenizer)

    def rendered(row: dict[str, Any]) -> dict[str, str | None]:
        return {
            "query_id": row["query_id"],
            "prompt": prompt_text(tokenizer, [{"role": "user", "content": row["query"] or ""}]),
            "completion": completion_of(row, prefix, model) if row["query"] else None,
        }

    columns = ["query_id", "query", "thoughts", "solution", "format"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(target, RENDERED) as out:
        for batch in scan(store, longcot, columns, batch_rows=BATCH_ROWS):
            out.write_table(pa.Table.from_pylist([rendered(row) for row in batch.to_pylist()], RENDERED))
    return target


def completion_of(row: dict[str, Any], prefix: str, model: Path) -> str | None:
    """The completion that follows the prompt; None if the row's thoughts and solution cannot be rendered.

    Args:
        prefix: what the chat template puts before every answer.

    Raises:
        BadInput: the format is unknown; or as `check_prefix`.
    """
    if row["format"] == PLAIN:
        return row["solution"] or None
    if row["format"] not in FORMATS:
        raise BadInput(
            f"query {row['query_id']}: unknown format {row['format']!r} in the column `format`: expected one of "
            f"{', '.join(FORMATS)}"
        )
    check_prefix(prefix, row["format"], f"model {model}")
    try:
        response = FORMATS[row["format"]].render(row["thoughts"] or "", row["solution"] or "")
    except ValueError:  # a part is empty, or spells a delimiter
        return None
    return continuation(response, opened_part(prefix, row["format"]))


def check_prefix(prefix: str, format: Format, title: str) -> None:
    """Refuse a chat template after whose prompts no response in `format` can be well-formed.

    Args:
        prefix: what the chat template puts before every answer.
        title: the model as messages name it.

    Raises:
        BadInput: the template closes thoughts that the response would open again, or opens those of other formats.
    """
    template = f"the chat template of {title}"
    if any(mark in prefix for mark in delimiters(format)[1:]):
        raise BadInput(
            f"{template} closes the thoughts at the end of every prompt ({prefix!r}), so that a response in the format "
            f"{format} would open them again: use a template that thinks, or another format"
        )
    opened = [name for name in TAGGED if opened_part(prefix, cast(Format, name))]
    if opened and format not in (*opened, PLAIN):
        raise BadInput(
            f"{template} opens the thoughts at the end of every prompt ({prefix!r}), and a response in the format "
            f"{format} would never close them: set the format to {' or '.join(opened)}, or use a template that opens "
            "nothing"
        )


def format_of(store: Store, longcot: Ref) -> Format:
    """The format of the first row of `longcot`, which is that of all rows unless tables were mixed by hand."""
    found = next(scan(store, longcot, ["format"], batch_rows=1)).column("format")[0].as_py()
    return cast(Format, found)
