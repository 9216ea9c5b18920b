"""Decontamination: find and drop queries that are problems of evaluation sets (BOLT does not say how it did this).

A query is contaminated if it shows one of five signs. They are tried in this order, and the first one is recorded:
- `same text`: equal except for case, punctuation and white space;
- `one word differs`: equal except for one word that is changed, inserted or deleted, if both have at least three
  words. Texts are compared twice: split at white space alone, and split at punctuation too;
- `contains the problem`: all words of a problem in a row, with anything around them; a problem of fewer than
  `contained_words` words is no sign, since "Hello" and "What is 2+2?" are in many unrelated queries;
- `shared 13-gram`: 13 consecutive words in common, as in the reports on GPT-3 and Llama;
- `near-duplicate`: similar sets of word trigrams (Jaccard), found by MinHash and then computed exactly.

An n-gram, or a problem, that is in more than `boilerplate` different problems of a set ("answer the following multiple
choice question ...") is no sign.

Why five words: the problems of MATH500, MATH level 5, Arena-Hard, MT-Bench, IFEval and AlpacaEval that are shorter
than 13 words (487) were wrapped in other text of five kinds. Without this sign 97 were found, with it 467 (from four
words on 478), and it flagged none of 5,072 real queries (WildChat, Alpaca, Self-Instruct). Of 1,696 short real texts,
each looked for in 8,879, one of four words is a common phrase ("Answer the following question", in 8 others), and no
longer one is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.steps.progress import counted
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.schemas import CONTAMINATED, HELD_OUT, QUERIES
from infra.store.store import Store
from infra.store.tables import batched, read_rows, scan_shard, shard_range, write_table
from tasks.queries.overlap import (
    Contained,
    Hashed,
    Hashes,
    Lookup,
    Places,
    band_keys,
    band_width,
    chunks,
    signatures,
    text_hash,
    words,
)
from tasks.queries.sources import Skipped, Source, problems_of

BATCH_ROWS = 5_000
MIN_WORDS = 3  # of texts in which one word may differ: "hello there" is no copy of "hello world"


class DecontaminateConfig(BaseModel):
    """What a query must not have in common with any problem of an evaluation set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    held_out: tuple[Source, ...] = Field((), description="Evaluation sets whose problems are kept out of the queries.")
    ngram: int | None = Field(
        13,
        ge=5,
        description="Consecutive words not to be shared (GPT-3: 13); null for no check, `contained_words` included.",
    )
    contained_words: int | None = Field(
        5,
        ge=1,
        description="A query must not contain a whole problem of at least this many words (this project's choice: "
        "shorter ones are common phrases); null for no check.",
    )
    boilerplate: int = Field(
        10,
        ge=1,
        description="N-grams and whole problems that are in more different problems of a set than this are ignored "
        "(this project's choice).",
    )
    near_duplicates: float | None = Field(
        0.6,
        ge=0.3,
        le=1,
        description="Jaccard similarity of word trigrams from which a query counts as a problem. If null, neither this "
        "nor copies with one word changed are searched for; problems made from templates need that.",
    )

    def without(self, source: Source) -> DecontaminateConfig:
        """These settings with another evaluation set held out."""
        held_out = self.held_out if source in self.held_out else (*self.held_out, source)
        return self.model_copy(update={"held_out": held_out})


class Bucket:
    """Maps the keys of one band of the signatures to problems, by sorted arrays: 16 bytes per entry."""

    def __init__(self, keys: Hashes, problems: Places) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._problems = keys[order], problems[order]

    def among(self, keys: Hashes) -> Any:
        """Whether some problem has the key, for each key."""
        return np.isin(keys, self._keys)

    def of(self, key: np.uint64) -> Places:
        """All problems with the key."""
        return self._problems[np.searchsorted(self._keys, key) : np.searchsorted(self._keys, key, side="right")]


class OneWordOff:
    """Finds problems that differ from a text in one word."""

    def __init__(self, hashed: Hashed) -> None:
        filled = np.flatnonzero(np.diff(hashed.ends))
        longer = np.diff(hashed.ends)[hashed.rows()] > MIN_WORDS
        self._masked = Lookup(hashed.masked(), hashed.rows())
        self._whole = Lookup(hashed.totals()[filled], filled)
        self._shortened = Lookup(hashed.shortened()[longer], hashed.rows()[longer])

    def of(self, hashed: Hashed) -> Iterator[tuple[Places, Places]]:
        """Texts and problems (-1: none) that differ in one word: changed, inserted or deleted in the text."""
        rows = hashed.rows()
        yield rows, self._masked.of(hashed.masked())
        yield rows, self._whole.of(hashed.shortened())
        filled = np.flatnonzero(np.diff(hashed.ends))
        yield filled, self._shortened.of(hashed.totals()[filled])


class Problems:
    """An index of all problems of all evaluation sets."""

    def __init__(self, config: DecontaminateConfig, problems: Sequence[dict[str, Any]]) -> None:
        self.config, self.rows = config, problems
        texts = [problem["query"] for problem in problems]
        spelled = [words(text) for text in texts]
        hashed, numbers = Hashed.of(spelled), np.arange(len(texts))
        joined = _joined(spelled)
        self._same = Lookup(joined, numbers)
        if config.ngram is not None:
            self._ngrams = Lookup(*self._distinctive_ngrams(hashed, joined, config.ngram))
            self._contained = self._distinctive_problems(hashed, joined)
        if config.near_duplicates is not None:
            self._one_word_off = [OneWordOff(each) for each in _split_both_ways(texts, spelled)]
            shingles = hashed.shingles()
            self._shingles = [_shingles_of(shingles, number) for number in numbers]
            self._width = band_width(config.near_duplicates)
            keys = band_keys(signatures(shingles), self._width)
            self._bands = [Bucket(keys[:, band], numbers) for band in range(keys.shape[1])]

    def _distinctive_ngrams(self, hashed: Hashed, joined: Hashes, n: int) -> tuple[Hashes, Places]:
        """The n-grams and the problem of each, without those in too many different problems of one set."""
        grams, rows = hashed.ngrams(n)
        distinctive = ~np.isin(grams, self._boilerplate(grams, rows, joined))
        return grams[distinctive], rows[distinctive]

    def _distinctive_problems(self, hashed: Hashed, joined: Hashes) -> Contained:
        """The problems of enough words, without those that are in too many different problems of one set."""
        least = self.config.contained_words
        long_enough = np.flatnonzero(np.diff(hashed.ends) >= least) if least is not None else np.zeros(0, np.int64)
        rows, contained = Contained(hashed, long_enough).of(hashed)
        whole = hashed.totals()
        common = self._boilerplate(whole[contained], rows, joined)
        return Contained(hashed, long_enough[~np.isin(whole[long_enough], common)])

    def _boilerplate(self, hashes: Hashes, rows: Places, joined: Hashes) -> Hashes:
        """The hashes, each found in the problem in `rows`, that are in too many different problems of one set."""
        sets = {name: number for number, name in enumerate(dict.fromkeys(row["source"] for row in self.rows))}
        of_set = np.array([sets[row["source"]] for row in self.rows], np.uint64)[rows]
        different = np.unique(np.stack([hashes, of_set, joined[rows]], axis=1), axis=0)
        each, count = np.unique(different[:, :2], axis=0, return_counts=True)
        return cast(Hashes, each[count > self.config.boilerplate, 0])

    def hits(self, texts: Sequence[str]) -> list[tuple[int, str] | None]:
        """For each text, the index of a problem that it is a copy of, and the sign of it; None if there is no sign."""
        spelled = [words(text) for text in texts]
        hashed = Hashed.of(spelled)
        found: dict[int, tuple[int, str]] = {}

        def note(rows: Places, problems: Places, sign: str) -> None:
            for place in np.flatnonzero(problems >= 0):
                found.setdefault(int(rows[place]), (int(problems[place]), sign))

        numbers = np.arange(len(texts))
        note(numbers, self._same.of(_joined(spelled)), "same text")
        if self.config.near_duplicates is not None:
            for index, each in zip(self._one_word_off, _split_both_ways(texts, spelled), strict=True):
                for rows, problems in index.of(each):
                    note(rows, problems, "one word differs")
        if self.config.ngram is not None:
            note(*self._contained.of(hashed), "contains the problem")
            grams, rows = hashed.ngrams(self.config.ngram)
            note(rows, self._ngrams.of(grams), f"shared {self.config.ngram}-gram")
        if self.config.near_duplicates is not None:
            note(numbers, self._near(hashed.shingles(), known=found), "near-duplicate")
        return [found.get(number) for number in range(len(texts))]

    def _near(self, shingles: Hashed, known: Container[int]) -> Places:
        """For each text, the first similar problem of all that share a band with it; -1 if there is none.

        All of them are compared, since problems that resemble each other share bands. Texts in `known` are skipped.
        """
        keys = band_keys(signatures(shingles), self._width)
        shared = np.stack([bucket.among(keys[:, band]) for band, bucket in enumerate(self._bands)], axis=1)
        near = np.full(len(keys), -1)
        for row in np.flatnonzero(shared.any(axis=1)):
            if row not in known:
                of_bands = [self._bands[band].of(keys[row, band]) for band in np.flatnonzero(shared[row])]
                mine = _shingles_of(shingles, row)
                similar = (each for each in np.unique(np.concatenate(of_bands)) if self._similar(mine, each))
                near[row] = next(similar, -1)
        return near

    def _similar(self, mine: Hashes, problem: Any) -> bool:
        theirs = self._shingles[problem]
        shared = len(np.intersect1d(mine, theirs, assume_unique=True))
        return shared > 0 and shared / (len(mine) + len(theirs) - shared) >= (self.config.near_duplicates or 1)


def _joined(spelled: Sequence[Sequence[str]]) -> Hashes:
    """A hash of each text's words joined together, which does not depend on how they are spaced."""
    return np.array([text_hash("".join(each)) for each in spelled], np.uint64)


def _split_both_ways(texts: Sequence[str], spelled: Sequence[Sequence[str]]) -> tuple[Hashed, Hashed]:
    """The texts as words and as chunks; a text with fewer than MIN_WORDS of them is empty."""
    both = spelled, [chunks(text) for text in texts]
    words_of, chunks_of = (Hashed.of([each if len(each) >= MIN_WORDS else [] for each in split]) for split in both)
    return words_of, chunks_of


def _shingles_of(shingles: Hashed, number: Any) -> Hashes:
    """The distinct shingles of one text, sorted."""
    return np.unique(shingles.hashes[shingles.ends[number] : shingles.ends[number + 1]])


@step
def read_held_out(plan: Plan, store: Store, *, held_out: Sequence[Source]) -> Ref:
    """Write the table `held-out`: the problems of all evaluation sets.

    Raises:
        BadInput, ConnectionError: as `tasks.queries.sources.problems_of`.
    """
    sets = [(source, Skipped(source.place)) for source in held_out]
    rows = (problem for source, skipped in sets for problem in problems_of(source, skipped))

    def counts() -> dict[str, int]:
        unusable = sum((skipped.reasons for _, skipped in sets), Counter[str]())
        return {f"held-out rows passed over: {reason}": count for reason, count in unusable.items()}

    return write_table(store, plan.step, plan.key, HELD_OUT, batched(rows), plan.provenance, counts=counts)


@step(outside_key=("config.held_out",), one_by_one=True)
def find_contaminated(
    plan: Plan,
    store: Store,
    *,
    config: DecontaminateConfig,
    held_out: Ref,
    queries: Ref,
    shard: int = 0,
    shards: int = 1,
) -> Ref:
    """Write the table `contaminated`: every query of a shard that is a problem, with the problem and the sign of it.

    `held_out`: the problems of `config.held_out`, as `read_held_out` makes it.
    """
    problems = Problems(config, list(read_rows(store, held_out)))
    in_shard = len(shard_range([queries], shard, shards))

    def rows() -> Iterator[dict[str, Any]]:
        batches = scan_shard(store, [queries], shard, shards, ["query_id", "query"], BATCH_ROWS)
        for batch in counted(plan.step, batches, in_shard):
            read = batch.to_pylist()
            for row, hit in zip(read, problems.hits([row["query"] for row in read]), strict=True):
                if hit:
                    problem = problems.rows[hit[0]]
                    place = {"problem_set": problem["source"], "problem_row": problem["source_row"]}
                    yield {**row, "problem": problem["query"], **place, "sign": hit[1]}

    counts = {"problems": held_out.rows, "queries": in_shard}
    return write_table(store, plan.step, plan.key, CONTAMINATED, batched(rows()), plan.provenance, counts=counts)


@step
def decontaminate(plan: Plan, store: Store, *, queries: Ref, contaminated: Sequence[Ref]) -> Ref:
    """Write the queries that are in none of the tables `contaminated`."""
    signs = {
        row["query_id"]: row["sign"] for table in contaminated for row in read_rows(store, table, ["query_id", "sign"])
    }
    funnel: Counter[str] = Counter()

    def kept() -> Iterator[dict[str, Any]]:
        for row in read_rows(store, queries):
            sign = signs.get(row["query_id"])
            funnel["read"] += 1
            funnel[f"dropped: held out for evaluation, {sign}" if sign else "kept"] += 1
            if sign is None:
                yield row

    rows = batched(kept())
    return write_table(store, plan.step, plan.key, QUERIES, rows, plan.provenance, counts=lambda: dict(funnel))
