"""Query mining (BOLT section 3.1.2): cleaning. One Unicode form, length bounds, a language filter, no duplicates.

The table is read several times: first to find the fate of every row, then to write the rows that are kept. Memory
hardly grows with the table: 9 bytes per row (its fate and a hash) are held in memory, MinHash signatures on disk.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, compress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator

from infra.steps.progress import counted
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, scan, write_table
from tasks.queries.identity import query_id, words_and_symbols
from tasks.queries.overlap import NearDuplicates, Places

FATES = (
    "kept",
    "dropped: empty",
    "dropped: too short",
    "dropped: too long",
    "dropped: language",
    "dropped: duplicate",
    "dropped: near-duplicate",
)
NO_LANGUAGE = "zxx"  # py3langid's code for text in no language: code, formulas
READ_FOR_LANGUAGE = 200  # characters, from the beginning
BATCH_ROWS = 5_000
_NEW_LINE = re.compile(r"\r\n?")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff]")  # all but tab and new line; zero-width spaces

Fates = npt.NDArray[np.int8]


class CleanConfig(BaseModel):
    """Which queries are usable. The paper gives no figures: the defaults are this project's choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_characters: int = Field(10, ge=1, description="Minimum length, in characters.")
    max_characters: int | None = Field(8_000, ge=1, description="Maximum length, in characters; null for no maximum.")
    languages: tuple[str, ...] = Field(
        ("en",),
        description="ISO 639-1 codes of the languages kept; text in no language, such as code, is kept too. If empty, "
        "all languages are kept.",
    )
    min_language: float = Field(
        0.01,
        ge=0,
        le=1,
        description="A query is dropped if the probability of the languages kept is less than this share of that of "
        "the most likely language. Low by default, since the language of short queries is hard to identify.",
    )
    near_duplicates: float | None = Field(
        0.8,
        ge=0.3,
        le=1,
        description="Jaccard similarity of trigrams of words and symbols (estimated by MinHash) from which two queries "
        "are near-duplicates; only the first is kept. If null, only exact duplicates are dropped.",
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [code for code in languages if not re.fullmatch("[a-z]{2,3}", code)]:
            raise ValueError(f"{', '.join(odd)}: expected ISO 639-1 codes such as 'en'")
        return languages


AS_THEY_ARE = CleanConfig(min_characters=1, max_characters=None, languages=(), min_language=0, near_duplicates=None)
"""For evaluation problems: only exact duplicates are dropped, since a problem is identified by its text."""


def cleaned(text: str) -> str:
    """The text in Unicode NFC, with plain new lines, without control characters, stripped of outer white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _CONTROL.sub("", _NEW_LINE.sub("\n", text)).strip()


@cache
def language_identifier() -> Any:
    """The language identifier of py3langid, in pure numpy.

    It was better and faster than lingua on real queries. On 30 short queries in 19 languages it made 6 errors, all at
    a probability below 0.42, at about 2,000 queries per second. lingua made 11 errors at 210 per second in its small
    mode, and 7 errors at 150 per second and 1.2 GB in its large one.
    """
    from py3langid.langid import LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)


def language_share(text: str, languages: Sequence[str]) -> float:
    """How likely it is that the text begins in one of the languages, or in none, relative to the most likely language.

    Raises:
        ValueError: the identifier does not know a language.
    """
    ranked = dict(language_identifier().rank(text[:READ_FOR_LANGUAGE]))
    if unknown := [code for code in languages if code not in ranked]:
        raise ValueError(f"languages: {', '.join(unknown)} not supported; expected some of {', '.join(sorted(ranked))}")
    return float(sum(ranked.get(code, 0.0) for code in sorted({*languages, NO_LANGUAGE})) / max(ranked.values()))


def fate(text: str, config: CleanConfig) -> str:
    """The fate of one cleaned text, apart from duplicates: an entry of FATES."""
    if not text:
        return "dropped: empty"
    if len(text) < config.min_characters:
        return "dropped: too short"
    if config.max_characters is not None and len(text) > config.max_characters:
        return "dropped: too long"
    if config.languages and language_share(text, config.languages) < config.min_language:
        return "dropped: language"
    return "kept"


def later_copies(hashes: npt.NDArray[np.uint64], fates: Fates) -> Places:
    """The rows still kept whose hash equals that of an earlier kept row."""
    kept = np.flatnonzero(fates == 0)
    return cast(Places, kept[pd.Series(hashes[kept]).duplicated()])


def texts(store: Store, tables: Sequence[Ref], step: str) -> Iterator[list[str]]:
    """Batches of cleaned texts of the tables, with progress shown under the name `step`."""
    batches = chain.from_iterable(scan(store, table, ["query"], BATCH_ROWS) for table in tables)
    for batch in counted(step, batches, sum(table.rows for table in tables)):
        yield [cleaned(text) for text in batch.column("query").to_pylist()]


def fates_of(store: Store, tables: Sequence[Ref], config: CleanConfig, folder: Path, step: str) -> Fates:
    """The fate of every row of the tables, as indices into FATES. MinHash signatures are kept on disk, in `folder`."""
    fates, hashes = [np.zeros(0, np.int8)], [np.zeros(0, np.uint64)]
    for batch in texts(store, tables, step):
        fates.append(np.array([FATES.index(fate(text, config)) for text in batch], np.int8))
        hashes.append(np.array([int(query_id(text), 16) for text in batch], np.uint64))
    found = np.concatenate(fates)
    found[later_copies(np.concatenate(hashes), found)] = FATES.index("dropped: duplicate")
    del fates, hashes
    if config.near_duplicates is not None:
        seen, first = NearDuplicates(folder, config.near_duplicates, words_and_symbols), 0
        for batch in texts(store, tables, f"{step}: near-duplicates"):
            kept = np.flatnonzero(found[first : first + len(batch)] == 0)
            seen.add([batch[i] for i in kept], kept + first)
            first += len(batch)
        found[seen.later()] = FATES.index("dropped: near-duplicate")
    return found


@step
def clean_queries(plan: Plan, store: Store, *, config: CleanConfig, sources: Sequence[Ref]) -> Ref:
    """Write the cleaned queries of all sources. Of duplicates, the first in the order of the sources is kept."""
    with TemporaryDirectory(prefix="bolt-clean-") as folder:
        fates = fates_of(store, sources, config, Path(folder), plan.step)
    counts = {name: int((fates == number).sum()) for number, name in enumerate(FATES)}
    dropped = {name: count for name, count in counts.items() if count and name != "kept"}
    funnel = {"read": len(fates), **dropped, "kept": counts["kept"]}
    read = chain.from_iterable(read_rows(store, source) for source in sources)
    rows = batched(map(_clean_row, compress(read, fates == 0)))
    return write_table(store, plan.step, plan.key, QUERIES, rows, plan.provenance, counts=funnel)


def _clean_row(row: dict[str, Any]) -> dict[str, Any]:
    text = cleaned(row["query"])
    return row if text == row["query"] else {**row, "query": text, "query_id": query_id(text)}
