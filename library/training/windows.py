"""A stream of shards cut into windows: rows that are read and shuffled together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.randomness import generator
from library.training.order import steps_per_epoch
from library.training.rows import Rows

_WINDOW_SHARDS = 4
# Stored bytes of a window's pictures: what a decoder holds of them at once.
_WINDOW_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Window:
    """Rows that are read and shuffled together.

    Attributes:
        number: of the window in its worker's epoch; -1 where nothing is shuffled.
        parts: shard number, and first and last-but-one position among the rows of that shard that are used.
        skip: rows at the beginning, after the shuffle, that were learned from already.
        keep: rows after these that are given.
    """

    number: int
    parts: tuple[tuple[int, int, int], ...]
    skip: int
    keep: int


@dataclass(frozen=True)
class Share:
    """One worker's part of every batch of a stream.

    Attributes:
        rows: of the dataset.
        batch_size: over all workers; no more than there are rows.
        rank: of the worker.
        world_size: workers in all.
    """

    rows: Rows
    batch_size: int
    rank: int
    world_size: int

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return steps_per_epoch(len(self.rows), self.batch_size)

    @property
    def local(self) -> int:
        """Pictures of a batch that are this worker's; parts differ by one where the batch does not divide."""
        return self._before(self.rank + 1) - self._before(self.rank)

    def _before(self, rank: int) -> int:
        return self.batch_size * rank // self.world_size

    def windows(self, seed: int, epoch: int, first_step: int = 0) -> list[Window]:
        """What this worker reads in an epoch from `first_step` on, in a new order of shards each epoch."""
        counts = shard_counts(self.rows)
        order = generator("shards", seed, epoch).permutation(len(counts)).tolist()
        first, mine = self.steps * self._before(self.rank), self.steps * self.local
        windows = windows_of(counts, order, first, first + mine, shuffled=True, max_rows=window_rows(self.rows))
        return cut_windows(windows, first_step * self.local, mine)


def shard_counts(rows: Rows) -> NDArray[np.int64]:
    """Rows of each shard."""
    return np.bincount(rows.shard, minlength=len(rows.shards)).astype(np.int64)


def window_rows(rows: Rows) -> int:
    """How many rows a window may hold, by the size of stored pictures."""
    return max(1, int(_WINDOW_BYTES // max(rows.picture_bytes, 1.0)))


def windows_of(
    counts: NDArray[np.int64], order: Sequence[int], first: int, last: int, *, shuffled: bool, max_rows: int
) -> list[Window]:
    """Cut positions `first` to `last` of the shards' rows, in `order` one after the other, into windows.

    A few shards are taken together, and each of their windows holds a piece of each: a shard may be all of one class.

    Args:
        counts: rows of each shard.
        order: shard numbers.
        first: position in the concatenated rows.
        last: one past the end.
        shuffled: number the windows, so that each is shuffled in its own way.
        max_rows: of a window, from 1.
    """
    parts: list[tuple[int, int, int]] = []
    at = 0
    for shard in order:
        low, high = max(first - at, 0), min(last - at, int(counts[shard]))
        if low < high:
            parts.append((int(shard), low, high))
        at += int(counts[shard])
    windows: list[Window] = []
    for begin in range(0, len(parts), _WINDOW_SHARDS):
        for pieces in _pieces(parts[begin : begin + _WINDOW_SHARDS], max_rows):
            rows = sum(high - low for _, low, high in pieces)
            windows.append(Window(len(windows) if shuffled else -1, pieces, 0, rows))
    return windows


def _pieces(parts: Sequence[tuple[int, int, int]], max_rows: int) -> list[tuple[tuple[int, int, int], ...]]:
    """`parts` cut so that each piece holds at most `max_rows`: as long a slice of each part as of the others."""
    total = sum(high - low for _, low, high in parts)
    number = -(-total // max_rows)
    # Row j of a part of n goes where j / n lies, so pieces are even; they are cut again by count, to keep the bound.
    places = np.concatenate([(np.arange(high - low) + 0.5) / (high - low) for _, low, high in parts])
    owners = np.repeat(np.arange(len(parts)), [high - low for _, low, high in parts])
    in_order = owners[np.argsort(places, kind="stable")]
    begins = [low for _, low, _ in parts]
    pieces: list[tuple[tuple[int, int, int], ...]] = []
    for piece in range(number):
        taken = np.bincount(
            in_order[total * piece // number : total * (piece + 1) // number], minlength=len(parts)
        ).tolist()
        pieces.append(
            tuple(
                (shard, begins[which], begins[which] + taken[which])
                for which, (shard, _, _) in enumerate(parts)
                if taken[which]
            )
        )
        begins = [begin + count for begin, count in zip(begins, taken, strict=True)]
    return pieces


def cut_windows(windows: Sequence[Window], skip: int, keep: int) -> list[Window]:
    """Leave out the first `skip` rows, give the `keep` after them."""
    cut: list[Window] = []
    for window in windows:
        left_out = min(skip, window.keep)
        given = min(keep, window.keep - left_out)
        skip, keep = skip - left_out, keep - given
        if given:
            cut.append(dataclasses.replace(window, skip=left_out, keep=given))
    return cut
