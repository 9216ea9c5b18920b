"""Renders LongCoT data into the trained model's chat template, which need not be that of the model that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cot_formats import FORMATS
from cot_formats.responses import continuation, opened_part
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import scan
from infra.text.chat import generation_prefix, load_tokenizer, prompt_text

RENDERED = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("prompt", "completion")])
BATCH_ROWS = 250


def render_longcot(store: Store, longcot: Ref, model: Path, target: Path) -> Path:
    """Write the rows of `longcot` as the SFT trainer reads them, in the chat template of the folder `model`.

    `prompt` is the whole chat prompt, without in-context examples. `completion` is the response that follows it. What
    the template itself opens at the end of the prompt (`<think>`) is not repeated in it. Rows are streamed.

    Returns `target`, a Parquet file with the columns `prompt` and `completion`.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    tokenizer = load_tokenizer(model)
    prefix = generation_prefix(tokenizer)

    def rendered(row: dict[str, Any]) -> dict[str, str]:
        response = FORMATS[row["format"]].render(row["thoughts"], row["solution"])
        return {
            "prompt": prompt_text(tokenizer, [{"role": "user", "content": row["query"]}]),
            "completion": continuation(response, opened_part(prefix, row["format"])),
        }

    columns = ["query", "thoughts", "solution", "format"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(target, RENDERED) as out:
        for batch in scan(store, longcot, columns, batch_rows=BATCH_ROWS):
            out.write_table(pa.Table.from_pylist([rendered(row) for row in batch.to_pylist()], RENDERED))
    return target
