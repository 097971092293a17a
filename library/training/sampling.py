"""Which rows each worker takes, and in what order; the same epoch for any number of workers.

Pictures in memory are shuffled over the whole epoch (`epoch_order`). A stream of shards is shuffled in windows: the
shards come in a new order each epoch, a few of them form a group, and the rows of each window of a group are shuffled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.dataset.shards import ROW_GROUP_BYTES
from library.randomness import generator
from library.training.rows import Part, Rows

#: Shards whose rows are mixed with each other.
GROUP_SHARDS = 4
# Stored bytes of a window's pictures: a reader holds one window in memory, and two while it reads ahead.
_WINDOW_BYTES = 64 * 2**20
_PARTS_PER_WORKER = 4


def epoch_order(labels: NDArray[np.int64], seed: int, epoch: int, *, balanced: bool = False) -> NDArray[np.int64]:
    """Row numbers in the order in which an epoch takes them.

    Args:
        labels: class ids of all rows.
        seed: the recipe's seed.
        epoch: from 0.
        balanced: take every class equally often (rows are then drawn with replacement); else every row once.

    Returns:
        As many row numbers as there are labels.
    """
    random = generator("order", seed, epoch)
    if not balanced:
        return random.permutation(len(labels))
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    drawn = random.integers(len(classes), size=len(labels))
    by_class = np.argsort(inverse, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return by_class[starts[drawn] + (random.random(len(labels)) * counts[drawn]).astype(np.int64)]


def batch_rows(order: NDArray[np.int64], step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The rows that one worker takes of a step's batch; the whole batch is the same for any `world_size`."""
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Whole batches of an epoch; the rest of the rows is left out, a different rest each epoch."""
    return max(1, rows // batch_size)


def smallest_part(batch_size: int, world_size: int, accumulate: int) -> int:
    """The smallest number of pictures that any worker passes through the model together."""
    local = batch_size // world_size
    return local // min(accumulate, max(local, 1))


@dataclass(frozen=True)
class Window:
    """Rows that are read and shuffled together.

    Attributes:
        number: group number and place in the group, which seed the shuffle; None where nothing is shuffled.
        parts: the row ranges to read, one for each shard.
        skip: rows to leave out at the beginning, after the shuffle: a resumed training has learned from them.
        keep: rows to yield after these.
    """

    number: tuple[int, int] | None
    parts: tuple[Part, ...]
    skip: int
    keep: int


@dataclass(frozen=True)
class Group:
    """A few shards whose rows are mixed, because a shard may hold pictures of one class only.

    Attributes:
        number: number of the group in its worker's epoch; None where nothing is shuffled.
        parts: this worker's row range of each shard.
        skip: rows to leave out at the beginning: a resumed training has learned from them.
        keep: rows to yield after these.
    """

    number: int | None
    parts: tuple[Part, ...]
    skip: int
    keep: int

    def windows(self, max_rows: int) -> Iterator[Window]:
        """Yields the group in windows of at most `max_rows` (from 1), each with a piece of each shard."""
        skip, keep = self.skip, self.keep
        for place, parts in enumerate(_even_pieces(self.parts, max_rows)):
            rows = _count_rows(parts)
            skipped = min(skip, rows)
            used = min(keep, rows - skipped)
            skip, keep = skip - skipped, keep - used
            if used:
                yield Window(None if self.number is None else (self.number, place), parts, skipped, used)


@dataclass(frozen=True)
class WorkerShare:
    """One worker's part of every batch of a stream.

    Attributes:
        rows: the dataset's rows.
        batch_size: pictures of a batch over all workers; at most the number of rows.
        rank: the worker's rank.
        world_size: number of workers.
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
        """This worker's pictures of a batch; workers differ by one where the batch does not divide evenly."""
        return self._before(self.rank + 1) - self._before(self.rank)

    def _before(self, rank: int) -> int:
        return self.batch_size * rank // self.world_size

    def groups(self, seed: int, epoch: int, first_step: int = 0, last_step: int | None = None) -> list[Group]:
        """What this worker reads for steps `first_step` to `last_step` (exclusive) of an epoch."""
        counts = self.rows.counts
        order = generator("shards", seed, epoch).permutation(len(counts))
        first = self.steps * self._before(self.rank)
        groups = make_groups(counts, order, first, first + self.steps * self.local, shuffled=True)
        last = self.steps if last_step is None else min(last_step, self.steps)
        return slice_groups(groups, first_step * self.local, (last - first_step) * self.local)


def stored_order_groups(rows: Rows, rank: int, world_size: int) -> list[Group]:
    """One worker's part of the rows in stored order; together the workers read each row once."""
    first, last = len(rows) * rank // world_size, len(rows) * (rank + 1) // world_size
    return make_groups(rows.counts, np.arange(len(rows.shards)), first, last, shuffled=False)


def small_parts(rows: Rows, workers: int) -> list[Part]:
    """All rows in parts of shards, small enough to divide the work evenly among `workers`.

    A part is at most as large as a row group is by default, and several may lie in one shard.
    """
    most = max(1, min(len(rows) // (workers * _PARTS_PER_WORKER), int(ROW_GROUP_BYTES / max(rows.picture_bytes, 1.0))))
    return [
        (shard, low, min(low + most, count))
        for shard, count in enumerate(rows.counts.tolist())
        for low in range(0, count, most)
    ]


def window_rows(rows: Rows) -> int:
    """The maximum rows of a window, from the mean size of a stored picture."""
    return max(1, int(_WINDOW_BYTES // max(rows.picture_bytes, 1.0)))


def make_groups(
    counts: NDArray[np.int64], order: NDArray[np.int64], first: int, last: int, *, shuffled: bool
) -> list[Group]:
    """Cuts a range of rows into groups of few shards. The rows are numbered through all shards, taken in `order`.

    Args:
        counts: rows of each shard.
        order: shard numbers.
        first: first row of the range.
        last: one past its last row.
        shuffled: number the groups, so that each window is shuffled in its own way.
    """
    ends = np.cumsum(counts[order])
    lows = np.clip(first - (ends - counts[order]), 0, None)
    highs = np.minimum(last - (ends - counts[order]), counts[order])
    (inside,) = np.nonzero(lows < highs)
    columns = (order[inside].tolist(), lows[inside].tolist(), highs[inside].tolist())
    parts: list[Part] = list(zip(*columns, strict=True))
    groups: list[Group] = []
    for begin in range(0, len(parts), GROUP_SHARDS):
        chosen = tuple(parts[begin : begin + GROUP_SHARDS])
        groups.append(Group(len(groups) if shuffled else None, chosen, 0, _count_rows(chosen)))
    return groups


def slice_groups(groups: Sequence[Group], skip: int, keep: int) -> list[Group]:
    """The groups without their first `skip` rows and what follows the next `keep` rows."""
    sliced: list[Group] = []
    for group in groups:
        skipped = min(skip, group.keep)
        used = min(keep, group.keep - skipped)
        skip, keep = skip - skipped, keep - used
        if used:
            sliced.append(dataclasses.replace(group, skip=skipped, keep=used))
    return sliced


def _count_rows(parts: Sequence[Part]) -> int:
    return sum(high - low for _, low, high in parts)


def _even_pieces(parts: Sequence[Part], max_rows: int) -> Iterator[tuple[Part, ...]]:
    """Yields `parts` in pieces of at most `max_rows`, each with about the same fraction of every part."""
    total = _count_rows(parts)
    number = -(-total // max_rows)
    # Row j of a part of n rows lies at j / n. Sorted by that, pieces are even; cutting by count keeps the bound.
    places = np.concatenate([(np.arange(high - low) + 0.5) / (high - low) for _, low, high in parts])
    owners = np.repeat(np.arange(len(parts)), [high - low for _, low, high in parts])
    in_order = owners[np.argsort(places, kind="stable")]
    begins = [low for _, low, _ in parts]
    for piece in range(number):
        counts = np.bincount(
            in_order[total * piece // number : total * (piece + 1) // number], minlength=len(parts)
        ).tolist()
        yield tuple(
            (shard, begins[which], begins[which] + counts[which])
            for which, (shard, _, _) in enumerate(parts)
            if counts[which]
        )
        begins = [begin + count for begin, count in zip(begins, counts, strict=True)]
