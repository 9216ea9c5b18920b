"""Rows of Hugging Face data sets. What the library raises becomes an error that says how to fix it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from infra.errors import BadInput
from infra.text.markdown import short
from tasks.queries.arrow_rows import plain_rows

BATCH_ROWS = 1_000
PARQUET = "refs/convert/parquet"  # the branch in which the hub keeps a data set as plain Parquet


def dataset_rows(
    dataset: str, subset: str | None, split: str, columns: Callable[[list[str]], list[str]]
) -> Iterator[dict[str, Any] | BadInput]:
    """Stream the rows of a data set ORG/NAME@REVISION; in place of one that cannot be read, the error that says so.

    `columns`: which columns to read, of those that there are.

    Raises:
        BadInput: there is no such data set, revision, configuration or split, it may not be read, or it cannot be read.
        ConnectionError: the hub cannot be reached, or is out of order.
    """
    import datasets

    name, _, revision = dataset.partition("@")
    place = ":".join(part for part in (dataset, subset, split) if part)
    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision, streaming=True)
        if rows.features is None:  # such as of JSON: known only from the rows
            yield from rows
            return
        rows, first = rows.select_columns(columns(list(rows.features))), 0
        for table in rows.with_format("arrow").iter(BATCH_ROWS):
            for row in plain_rows(table, place, first):
                yield row if isinstance(row, BadInput) else rows.features.decode_example(row)
            first += table.num_rows
    except BadInput:
        raise
    except Exception as error:  # whatever the library raises is about the data set or the hub
        raise explained(error, place) from error


def explained(error: Exception, place: str) -> BadInput | ConnectionError:
    """What went wrong in reading a data set, and how to fix it. `place` names data set, configuration and split."""
    import aiohttp
    import httpx
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    said = f"{type(error).__name__}: {short(str(error), 500)}"
    if isinstance(error, OfflineModeIsEnabled):
        return BadInput(f"{place}: not read, since HF_HUB_OFFLINE is set ({said}): unset it, or give files as `path`")
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    unreached = (
        ConnectionError,
        TimeoutError,
        httpx.TransportError,
        LocalEntryNotFoundError,
        aiohttp.ClientConnectionError,
        aiohttp.ClientPayloadError,
    )
    if isinstance(error, unreached) or (isinstance(status, int) and (status == 429 or status >= 500)):  # an outage
        return ConnectionError(
            f"{place}: the hub cannot be reached ({said}): check the network, its proxy (HTTPS_PROXY) and HF_ENDPOINT, "
            "or download the data set and give its files as `path`"
        )
    if isinstance(error, DatasetNotFoundError | HfHubHTTPError | aiohttp.ClientResponseError):
        return BadInput(
            f"{place}: no such data set or revision, or no access to it ({said}): check the name; for a gated or "
            "private data set, accept its terms on the hub and set HF_TOKEN"
        )
    if isinstance(error, ImportError):
        return BadInput(f"{place}: a package is missing to read it ({said}): install it, or give its files as `path`")
    if isinstance(error, FileNotFoundError) or "scripts are no longer supported" in said:
        return BadInput(f"{place}: has no files that can be read as they are ({said}): set the revision to {PARQUET}")
    if isinstance(error, pa.ArrowException):
        return BadInput(
            f"{place}: its files are broken, or not all alike ({said}): set the revision to {PARQUET}, or give one "
            "file as `path`"
        )
    return BadInput(f"{place}: cannot be read ({said}): check subset and split")
