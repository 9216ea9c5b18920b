"""How the rows of an optimiser step are divided into micro-batches.

A step always has the same rows, `batch` of them in random order, however they are divided. So neither packing nor
grouping by length changes what is learned: the loss is a mean over the step's tokens (SFT) or pairs (DPO). Only the
last step of an epoch has fewer rows; there, as in Hugging Face's trainer, the loss is the mean over micro-batches, so
that a pair in a smaller one weighs more. No row is cut or left out.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]
Layout = Literal["packed", "grouped", "equal", "random"]
"""`packed`: rows end to end, without padding. `grouped`: rows of similar length, padded, as many as fit. `equal`: the
same number of rows of similar length. `random`: the same number of rows."""


@dataclass(frozen=True)
class Batches:
    """The micro-batches of a whole training."""

    lengths: Lengths
    """Tokens of each row; of a pair, those of its longer side."""
    batch: int
    """Rows of an optimiser step, over all ranks."""
    micro_batches: int
    """Micro-batches of an optimiser step, over all ranks: a multiple of `ranks`."""
    ranks: int
    layout: Layout
    seed: int

    @cached_property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.lengths) // self.batch)

    @cached_property
    def _last(self) -> int:
        """Rows of an epoch's last step."""
        return len(self.lengths) - (self.steps - 1) * self.batch

    @cached_property
    def repeated(self) -> int:
        """Rows that an epoch's last step has twice, so that every rank has as many."""
        return -self._last % self.ranks

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return (self.steps - 1) * self.micro_batches + self._count(self._last + self.repeated)

    def _count(self, rows: int) -> int:
        """Micro-batches of a step with so many rows, a multiple of `ranks`."""
        return -(-rows * (self.micro_batches // self.ranks) // self.batch) * self.ranks

    def epoch(self, number: int) -> Iterator[list[NDArray[np.int64]]]:
        """The micro-batches (row numbers) of each step of an epoch.

        Of each `ranks` in succession, every rank takes one. The order of the rows depends on `seed` and `number` alone.
        """
        order = np.random.default_rng((self.seed, number)).permutation(len(self.lengths))
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            rows = np.resize(rows, len(rows) + -len(rows) % self.ranks)
            parts = divided(self.lengths[rows], self._count(len(rows)), self.layout)
            yield [rows[part] for part in parts]

    def computed(self, number: int = 0) -> int:
        """Tokens that an epoch computes: the rows', and the padding."""
        parts = (self.lengths[part] for step in self.epoch(number) for part in step)
        return sum(int(part.sum() if self.layout == "packed" else part.max() * len(part)) for part in parts)


class Sampler:
    """The row numbers of each micro-batch of an epoch, for a data loader whose micro-batches the ranks take in turn."""

    def __init__(self, batches: Batches, done: Callable[[], int]) -> None:
        """`done`: optimiser steps made so far. It tells the epoch, after a resume as well."""
        self.batches, self.done = batches, done

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.done() // self.batches.steps
        for step in self.batches.epoch(epoch):
            yield from (part.tolist() for part in step)


def divided(lengths: Lengths, parts: int, layout: Layout) -> list[NDArray[np.int64]]:
    """The positions of `lengths` in `parts` parts, none empty, those with most tokens to compute first."""
    if layout == "random":
        return np.array_split(np.arange(len(lengths)), parts)
    if layout == "packed":
        return packed(lengths, parts)
    ordered = np.argsort(-lengths, kind="stable")
    return np.array_split(ordered, parts) if layout == "equal" else grouped(lengths, ordered, parts)


def packed(lengths: Lengths, parts: int) -> list[NDArray[np.int64]]:
    """Parts with about equal sums of tokens: the longest row goes to the part that has least, and so on (LPT; Graham,
    "Bounds on Multiprocessing Timing Anomalies", 1969).

    No part has more tokens than the longest row times the rows of a part if all had as many.
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for row in np.argsort(-lengths, kind="stable").tolist():
        load, part = heapq.heappop(loads)
        found[part].append(row)
        heapq.heappush(loads, (load + int(lengths[row]), part))
    return [np.array(found[part]) for _, part in sorted(loads, reverse=True)]


def grouped(lengths: Lengths, ordered: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Parts of rows of similar length whose tokens, with padding, are as few as the largest part allows.

    No part has more than the longest row times the rows of a part if all had as many.

    Args:
        ordered: all positions, longest row first.
    """
    sizes = lengths[ordered].tolist()

    def cut(most: int) -> list[int]:
        """Where parts start of at most `most` tokens, padding included."""
        starts = [0]
        for row in range(1, len(sizes)):
            if sizes[starts[-1]] * (row + 1 - starts[-1]) > most:
                starts.append(row)
        return starts

    low, high = sizes[0], sizes[0] * -(-len(sizes) // parts)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= parts else (middle + 1, high)
    starts = cut(high)
    while len(starts) < parts:  # short rows fit into fewer parts: the largest are halved
        ends = [*starts[1:], len(sizes)]
        width, start = max((sizes[a] * (b - a), a) for a, b in zip(starts, ends, strict=True) if b - a > 1)
        end = start + width // sizes[start]
        starts = sorted([*starts, (start + end + 1) // 2])
    found = np.split(ordered, starts[1:])
    return sorted(found, key=lambda part: -int(lengths[part[0]]) * len(part))


def pack_count(lengths: Lengths, batch: int, ranks: int, room: int, *, epochs: int, seed: int) -> int:
    """The fewest packs of a step, over all ranks, with which no pack of any step has more than `room` tokens.

    Raises `ValueError` if a row is longer than `room`.
    """
    if lengths.max() > room:
        raise ValueError(f"a row of {lengths.max()} tokens does not fit into a pack of {room}")
    count = ranks
    while True:
        batches = Batches(lengths, batch, count, ranks, "packed", seed)
        packs = (
            int(lengths[part].sum()) for number in range(epochs) for step in batches.epoch(number) for part in step
        )
        if max(packs) <= room:
            return count
        count += ranks
