"""A stream of shards cut into windows: rows that are read and shuffled together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.dataset.shards import ROW_GROUP_BYTES
from library.randomness import generator
from library.training.order import steps_per_epoch
from library.training.rows import Part, Rows

#: Shards whose rows are mixed.
GROUP_SHARDS = 4
# Stored bytes of a window's pictures: what a reader holds of them at once, and twice that while it reads ahead.
_WINDOW_BYTES = 64 * 2**20
_PARTS_A_WORKER = 4


@dataclass(frozen=True)
class Window:
    """Rows that are read and shuffled together.

    Attributes:
        number: of the window in its worker's epoch: its group, and its place there; None where nothing is shuffled.
        parts: of which shards, and of each which rows.
        skip: rows at the beginning, after the shuffle, that were learned from already.
        keep: rows after these that are given.
    """

    number: tuple[int, int] | None
    parts: tuple[Part, ...]
    skip: int
    keep: int


@dataclass(frozen=True)
class Group:
    """A few shards whose rows are mixed: a shard may be all of one class.

    Attributes:
        number: of the group in its worker's epoch; None where nothing is shuffled.
        parts: of each shard the rows that are this worker's.
        skip: rows at the beginning that were learned from already.
        keep: rows after these that are given.
    """

    number: int | None
    parts: tuple[Part, ...]
    skip: int
    keep: int

    def windows(self, max_rows: int) -> Iterator[Window]:
        """The group in windows of at most `max_rows` (from 1), each with a piece of each shard."""
        skip, keep = self.skip, self.keep
        for place, parts in enumerate(_pieces(self.parts, max_rows)):
            rows = _rows_of(parts)
            left_out = min(skip, rows)
            given = min(keep, rows - left_out)
            skip, keep = skip - left_out, keep - given
            if given:
                yield Window(None if self.number is None else (self.number, place), parts, left_out, given)


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

    def groups(self, seed: int, epoch: int, first_step: int = 0, last_step: int | None = None) -> list[Group]:
        """What this worker reads for the steps of an epoch, in a new order of shards each epoch."""
        counts = self.rows.counts
        order = generator("shards", seed, epoch).permutation(len(counts))
        first = self.steps * self._before(self.rank)
        groups = groups_of(counts, order, first, first + self.steps * self.local, shuffled=True)
        last = self.steps if last_step is None else min(last_step, self.steps)
        return cut(groups, first_step * self.local, (last - first_step) * self.local)


def all_groups(rows: Rows, rank: int, world_size: int) -> list[Group]:
    """One worker's part of the rows in their own order; together the workers have each row once."""
    first, last = len(rows) * rank // world_size, len(rows) * (rank + 1) // world_size
    return groups_of(rows.counts, np.arange(len(rows.shards)), first, last, shuffled=False)


def small_parts(rows: Rows, workers: int) -> list[Part]:
    """All rows in parts of shards, small enough for `workers` to have as much to do as each other.

    A part is no larger than a row group is by default, and several may lie in one shard.
    """
    most = max(1, min(len(rows) // (workers * _PARTS_A_WORKER), int(ROW_GROUP_BYTES / max(rows.picture_bytes, 1.0))))
    return [
        (shard, low, min(low + most, count))
        for shard, count in enumerate(rows.counts.tolist())
        for low in range(0, count, most)
    ]


def window_rows(rows: Rows) -> int:
    """How many rows a window may hold, by the size of stored pictures."""
    return max(1, int(_WINDOW_BYTES // max(rows.picture_bytes, 1.0)))


def groups_of(
    counts: NDArray[np.int64], order: NDArray[np.int64], first: int, last: int, *, shuffled: bool
) -> list[Group]:
    """Cut positions `first` to `last` of the shards' rows, in `order` one after the other, into groups of few shards.

    Args:
        counts: rows of each shard.
        order: shard numbers.
        first: position in the concatenated rows.
        last: one past the end.
        shuffled: number the groups, so that each window is shuffled in its own way.
    """
    ends = np.cumsum(counts[order])
    lows = np.clip(first - (ends - counts[order]), 0, None)
    highs = np.minimum(last - (ends - counts[order]), counts[order])
    (mine,) = np.nonzero(lows < highs)
    columns = (order[mine].tolist(), lows[mine].tolist(), highs[mine].tolist())
    parts: list[Part] = list(zip(*columns, strict=True))
    groups: list[Group] = []
    for begin in range(0, len(parts), GROUP_SHARDS):
        chosen = tuple(parts[begin : begin + GROUP_SHARDS])
        groups.append(Group(len(groups) if shuffled else None, chosen, 0, _rows_of(chosen)))
    return groups


def cut(groups: Sequence[Group], skip: int, keep: int) -> list[Group]:
    """Leave out the first `skip` rows, give the `keep` after them."""
    kept: list[Group] = []
    for group in groups:
        left_out = min(skip, group.keep)
        given = min(keep, group.keep - left_out)
        skip, keep = skip - left_out, keep - given
        if given:
            kept.append(dataclasses.replace(group, skip=left_out, keep=given))
    return kept


def _rows_of(parts: Sequence[Part]) -> int:
    return sum(high - low for _, low, high in parts)


def _pieces(parts: Sequence[Part], max_rows: int) -> Iterator[tuple[Part, ...]]:
    """`parts` cut so that each piece holds at most `max_rows`: as long a slice of each part as of the others."""
    total = _rows_of(parts)
    number = -(-total // max_rows)
    # Row j of a part of n goes where j / n lies, so pieces are even; they are cut again by count, to keep the bound.
    places = np.concatenate([(np.arange(high - low) + 0.5) / (high - low) for _, low, high in parts])
    owners = np.repeat(np.arange(len(parts)), [high - low for _, low, high in parts])
    in_order = owners[np.argsort(places, kind="stable")]
    begins = [low for _, low, _ in parts]
    for piece in range(number):
        taken = np.bincount(
            in_order[total * piece // number : total * (piece + 1) // number], minlength=len(parts)
        ).tolist()
        yield tuple(
            (shard, begins[which], begins[which] + taken[which])
            for which, (shard, _, _) in enumerate(parts)
            if taken[which]
        )
        begins = [begin + count for begin, count in zip(begins, taken, strict=True)]
