"""Decontamination: queries that are problems of evaluation sets (BOLT does not say how it kept them out).

Four signs, in this order, the first of which is kept as the reason:
- `same text`: equal but for case, punctuation and white space;
- `one word differs`: equal but for one word changed, put in or left out, where three are left at least; a word is what
  stands between white space as well as what stands between signs;
- `shared 13-gram`: 13 words in a row in common, as in GPT-3's and Llama's reports. An n-gram that occurs in more than
  `boilerplate` different problems of a set ("answer the following multiple choice question ...") tells nothing and is
  left out;
- `near-duplicate`: like Jaccard similarities of word trigrams, found by MinHash and then computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.steps.progress import counted
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import CONTAMINATED, QUERIES
from infra.store.store import Store
from infra.store.tables import read_rows, scan, write_table
from tasks.queries.overlap import Hashed, Hashes, Places, band_keys, band_width, chunks, signatures, text_hash, words
from tasks.queries.sources import Source, problems_of

BATCH_ROWS = 5_000
LEAST_WORDS = 3  # fewer say too little: "hello there", "hello world"


class DecontaminateConfig(BaseModel):
    """What a query may not have in common with a problem of an evaluation set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    held_out: tuple[Source, ...] = Field((), description="Evaluation sets, none of whose problems may be mined.")
    ngram: int | None = Field(13, ge=5, description="Words in a row that may not be shared (GPT-3: 13); none: any.")
    boilerplate: int = Field(
        10, ge=1, description="N-grams in more different problems of one set are no sign (this project's choice)."
    )
    near_duplicates: float | None = Field(
        0.6,
        ge=0.3,
        le=1,
        description="Jaccard similarity of word trigrams from which a query counts as a problem; also turns on the "
        "search for problems with one word changed. None leaves both out, as problems made from templates need.",
    )

    def without(self, source: Source) -> DecontaminateConfig:
        """The same, minus the problems of another set."""
        held_out = self.held_out if source in self.held_out else (*self.held_out, source)
        return self.model_copy(update={"held_out": held_out})


class Lookup:
    """Which problem has a hash: sorted, 16 bytes an entry. Of problems with the same hash the first is told."""

    def __init__(self, hashes: Hashes, problems: Places) -> None:
        self._hashes, first = np.unique(hashes, return_index=True)
        self._problems = problems[first]

    def of(self, hashes: Hashes) -> Places:
        """The problem of each hash; -1 where there is none."""
        if not len(self._hashes):
            return np.full(len(hashes), -1)
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.where(self._hashes[places] == hashes, self._problems[places], -1)


class Bucket:
    """The problems by one band of their signatures: sorted, 16 bytes an entry."""

    def __init__(self, keys: Hashes, problems: Places) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._problems = keys[order], problems[order]

    def among(self, keys: Hashes) -> Any:
        """Which of the keys are those of some problem."""
        return np.isin(keys, self._keys)

    def of(self, key: np.uint64) -> Places:
        """All problems with a key."""
        return self._problems[np.searchsorted(self._keys, key) : np.searchsorted(self._keys, key, side="right")]


class OneWordOff:
    """The problems, to be found by texts that differ in one word."""

    def __init__(self, hashed: Hashed) -> None:
        rows = np.arange(len(hashed.ends) - 1)
        filled = np.diff(hashed.ends) > 0
        longer = np.diff(hashed.ends)[hashed.rows()] > LEAST_WORDS
        self._masked = Lookup(hashed.masked(), hashed.rows())
        self._whole = Lookup(hashed.totals()[filled], rows[filled])
        self._lessened = Lookup(hashed.lessened()[longer], hashed.rows()[longer])

    def of(self, hashed: Hashed) -> Iterator[tuple[Places, Places]]:
        """Texts and the problems that they are one word away from: changed, put in, left out."""
        rows = hashed.rows()
        yield rows, self._masked.of(hashed.masked())
        yield rows, self._whole.of(hashed.lessened())
        filled = np.flatnonzero(np.diff(hashed.ends) > 0)
        yield filled, self._lessened.of(hashed.totals()[filled])


class Problems:
    """All problems of all evaluation sets, indexed."""

    def __init__(self, config: DecontaminateConfig, problems: Sequence[dict[str, Any]]) -> None:
        self.config, self.rows = config, problems
        texts = [problem["query"] for problem in problems]
        spelled = [words(text) for text in texts]
        hashed, numbers = Hashed.of(spelled), np.arange(len(texts))
        joined = _joined(spelled)
        self._same = Lookup(joined, numbers)
        if config.ngram is not None:
            self._ngrams = Lookup(*self._telling(hashed, joined, config.ngram))
        if config.near_duplicates is not None:
            self._close = [OneWordOff(each) for each in _two_ways(texts, spelled)]
            shingles = hashed.shingles()
            self._shingles = [_part(shingles, number) for number in numbers]
            self._width = band_width(config.near_duplicates)
            keys = band_keys(signatures(shingles), self._width)
            self._bands = [Bucket(keys[:, band], numbers) for band in range(keys.shape[1])]

    def _telling(self, hashed: Hashed, joined: Hashes, n: int) -> tuple[Hashes, Places]:
        """The n-grams, and a problem of each, without those of too many different problems of one set."""
        grams, rows = hashed.ngrams(n)
        sets = {name: number for number, name in enumerate(dict.fromkeys(row["source"] for row in self.rows))}
        of_set = np.array([sets[row["source"]] for row in self.rows], np.int64)[rows]
        different = np.unique(np.stack([grams, of_set.astype(np.uint64), joined[rows]], axis=1), axis=0)
        each, count = np.unique(different[:, :2], axis=0, return_counts=True)
        telling = ~np.isin(grams, each[count > self.config.boilerplate, 0])
        return grams[telling], rows[telling]

    def hits(self, texts: Sequence[str]) -> list[tuple[int, str] | None]:
        """For each text the problem that it has too much of, by its number, and the sign; None where there is none."""
        spelled = [words(text) for text in texts]
        hashed = Hashed.of(spelled)
        found: dict[int, tuple[int, str]] = {}

        def note(rows: Places, problems: Places, sign: str) -> None:
            for place in np.flatnonzero(problems >= 0):
                found.setdefault(int(rows[place]), (int(problems[place]), sign))

        numbers = np.arange(len(texts))
        note(numbers, self._same.of(_joined(spelled)), "same text")
        if self.config.near_duplicates is not None:
            for close, each in zip(self._close, _two_ways(texts, spelled), strict=True):
                for rows, problems in close.of(each):
                    note(rows, problems, "one word differs")
        if self.config.ngram is not None:
            grams, rows = hashed.ngrams(self.config.ngram)
            note(rows, self._ngrams.of(grams), f"shared {self.config.ngram}-gram")
        if self.config.near_duplicates is not None:
            note(numbers, self._near(hashed.shingles(), known=found), "near-duplicate")
        return [found.get(number) for number in range(len(texts))]

    def _near(self, shingles: Hashed, known: Container[int]) -> Places:
        """The first problem that is similar to each text, of all that share a band with it; -1 where there is none.

        Problems that resemble one another share bands: each of them is compared. Texts that are `known` are left out.
        """
        keys = band_keys(signatures(shingles), self._width)
        shared = np.stack([bucket.among(keys[:, band]) for band, bucket in enumerate(self._bands)], axis=1)
        near = np.full(len(keys), -1)
        for row in np.flatnonzero(shared.any(axis=1)):
            if row not in known:
                of_bands = [self._bands[band].of(keys[row, band]) for band in np.flatnonzero(shared[row])]
                mine = _part(shingles, row)
                similar = (each for each in np.unique(np.concatenate(of_bands)) if self._similar(mine, each))
                near[row] = next(similar, -1)
        return near

    def _similar(self, mine: Hashes, problem: Any) -> bool:
        theirs = self._shingles[problem]
        shared = len(np.intersect1d(mine, theirs, assume_unique=True))
        return shared > 0 and shared / (len(mine) + len(theirs) - shared) >= (self.config.near_duplicates or 1)


def _joined(spelled: Sequence[Sequence[str]]) -> Hashes:
    """A hash of each text's letters and digits alone; however they are spaced, it is the same."""
    return np.array([text_hash("".join(each)) for each in spelled], np.uint64)


def _two_ways(texts: Sequence[str], spelled: Sequence[Sequence[str]]) -> tuple[Hashed, Hashed]:
    """The texts as their words and as their chunks; of a text too short to tell by, none."""
    both = spelled, [chunks(text) for text in texts]
    words_of, chunks_of = (Hashed.of([each if len(each) >= LEAST_WORDS else [] for each in split]) for split in both)
    return words_of, chunks_of


def _part(shingles: Hashed, number: Any) -> Hashes:
    """The different shingles of one text, sorted."""
    return np.unique(shingles.hashes[shingles.ends[number] : shingles.ends[number + 1]])


@step
def find_contaminated(plan: Plan, store: Store, *, config: DecontaminateConfig, queries: Ref) -> Ref:
    """Write the table `contaminated`: every query that is a problem, the problem, and by which sign it was told."""
    problems = Problems(config, [problem for source in config.held_out for problem in problems_of(source)])

    def rows() -> Iterator[list[dict[str, Any]]]:
        for batch in counted(plan.step, scan(store, queries, ["query_id", "query"], BATCH_ROWS), queries.rows):
            asked = batch.to_pylist()
            hits = problems.hits([row["query"] for row in asked])
            yield [
                {**row, **_told(problems.rows[hit[0]]), "sign": hit[1]}
                for row, hit in zip(asked, hits, strict=True)
                if hit
            ]

    counts = {"problems": len(problems.rows), "queries": queries.rows}
    return write_table(store, plan.step, plan.key, CONTAMINATED, rows(), plan.provenance, counts=counts)


def _told(problem: dict[str, Any]) -> dict[str, Any]:
    return {"problem": problem["query"], "problem_set": problem["source"], "problem_row": problem["source_row"]}


@step
def decontaminate(plan: Plan, store: Store, *, queries: Ref, contaminated: Ref) -> Ref:
    """Write the queries that are no problem of an evaluation set."""
    signs = {row["query_id"]: row["sign"] for row in read_rows(store, contaminated, ["query_id", "sign"])}
    funnel: Counter[str] = Counter()

    def rows() -> Iterator[list[dict[str, Any]]]:
        for batch in scan(store, queries, batch_rows=BATCH_ROWS):
            asked = batch.to_pylist()
            for row in asked:
                sign = signs.get(row["query_id"])
                funnel["read"] += 1
                funnel[f"dropped: held out for evaluation, {sign}" if sign else "kept"] += 1
            yield [row for row in asked if row["query_id"] not in signs]

    return write_table(store, plan.step, plan.key, QUERIES, rows(), plan.provenance, counts=lambda: dict(funnel))
