"""The pictures of a stream: read window by window, shuffled, then decoded and augmented some at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError
from library.imaging.picture import Pixels
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline, scaled, stack
from library.randomness import generator
from library.training.rows import Part, Rows, rejected_text
from library.training.training_batch import Batch
from library.training.windows import GROUP_SHARDS, Group, Window, window_rows

_USED = -1


class WindowReader:
    """Reads windows, each in the order in which it is learned from.

    Args:
        rows: of the dataset.
        read: gives a part of a shard as a table with the columns `bytes`, `key`, `label` and those that steps ask for.
        seed: of the order within a window.
        rank: of the worker that learns from them.
    """

    def __init__(self, rows: Rows, read: Callable[[Part], pa.Table], seed: int, rank: int) -> None:
        self._max_rows, self._read = window_rows(rows), read
        self._seed, self._rank = seed, rank
        self._shards = ThreadPoolExecutor(GROUP_SHARDS)

    def windows(self, groups: Iterable[Group], epoch: int) -> Iterator[pa.Table]:
        """The stored pictures of each window of `groups`; the next window is read while one is used."""
        with ThreadPoolExecutor(1) as ahead:
            following = None
            for window in (window for group in groups for window in group.windows(self._max_rows)):
                current, following = following, ahead.submit(self.window, window, epoch)
                if current is not None:
                    yield current.result()
            if following is not None:
                yield following.result()

    def window(self, window: Window, epoch: int) -> pa.Table:
        """A row a picture."""
        table = pa.concat_tables(self._shards.map(self._read, window.parts))
        order = np.arange(table.num_rows)
        if window.number is not None:
            order = generator("window", self._seed, epoch, self._rank, *window.number).permutation(table.num_rows)
        return table.take(pa.array(order[window.skip : window.skip + window.keep]))


@dataclass(frozen=True)
class Decoded:
    """Pictures in the order in which they are learned from.

    Attributes:
        pictures: n x height x width x channels.
        labels: n class ids.
        keys: of the pictures.
        rejected: of each picture that stands in for another one, why that could not be used; else empty.
        lost: the class id of what it stands in for, else -1.

    Where nothing could be used, there are n reasons and no pictures, labels and keys.
    """

    pictures: NDArray[Any]
    labels: NDArray[np.int64]
    keys: Sequence[str]
    rejected: Sequence[str]
    lost: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lost)

    def standing_in(self, other: Decoded) -> Decoded:
        """The last picture as often as another part has rows, of which none could be used."""
        count = len(other)
        pictures = np.repeat(self.pictures[-1:], count, axis=0)
        labels = np.repeat(self.labels[-1:], count)
        return Decoded(pictures, labels, [*self.keys[-1:]] * count, other.rejected, other.lost)

    def __getitem__(self, rows: slice) -> Decoded:
        return Decoded(self.pictures[rows], self.labels[rows], self.keys[rows], self.rejected[rows], self.lost[rows])

    def batch(self, size: int) -> Batch:
        """As this worker's part of a batch of `size` pictures."""
        return Batch(self.pictures, self.labels, self.keys, size)

    def without_stand_ins(self) -> Batch:
        """As a batch of those that could be used."""
        good = np.flatnonzero(self.lost == _USED)
        if len(good) == len(self):
            return self.batch(len(self))
        keys = [self.keys[row] for row in good.tolist()]
        return Batch(self.pictures[good], self.labels[good], keys, len(good))

    @classmethod
    def joined(cls, parts: Sequence[Decoded]) -> Decoded:
        """Parts in order, as one."""
        if len(parts) == 1:
            return parts[0]
        pictures = [part.pictures for part in parts]
        if len({array.dtype for array in pictures}) > 1:
            pictures = [scaled(array) for array in pictures]
        return cls(
            np.concatenate(pictures),
            np.concatenate([part.labels for part in parts]),
            [key for part in parts for key in part.keys],
            [reason for part in parts for reason in part.rejected],
            np.concatenate([part.lost for part in parts]),
        )


class Unusable:
    """Counts the pictures of a dataset that could not be used.

    Args:
        rows: of the dataset.

    Attributes:
        by_class: how many of each class.
        by_reason: the same by reason.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.by_class = np.zeros(len(rows.classes), np.int64)
        self.by_reason: Counter[str] = Counter()

    def clear(self) -> None:
        """Count from nothing again."""
        self.by_class[:] = 0
        self.by_reason.clear()

    def add(self, part: Decoded) -> None:
        """Count those of a part."""
        lost = part.lost[part.lost != _USED]
        self.by_class += np.bincount(lost, minlength=len(self.by_class))
        self.by_reason.update(reason for reason in part.rejected if reason)


class ChunkDecoder:
    """Decodes and augments.

    Args:
        classes: names by id.
        inputs: what the model sees.
        augmenter: None for none.
    """

    def __init__(self, classes: Sequence[str], inputs: InputPipeline, augmenter: Augmenter | None) -> None:
        self._inputs, self._augmenter = inputs, augmenter
        self._ids = {name: number for number, name in enumerate(classes)}

    def decode(self, records: Sequence[Mapping[str, Any]], epoch: int) -> Decoded:
        """As many pictures as there are records: one that cannot be used is replaced by the one before it, or after it.

        Args:
            records: `bytes`, `key`, `label` and the columns that steps ask for.
            epoch: from 0.
        """
        pictures: list[Pixels] = []
        sources: list[int] = []  # of each record the place in `pictures`
        used: list[int] = []  # of each picture the place of its record
        rejected = [""] * len(records)
        for number, record in enumerate(records):
            others = {name: value for name, value in record.items() if name != "bytes"}
            try:
                pixels = self._inputs.before_fit(record["bytes"], **others)
                if self._augmenter is not None:
                    pixels = self._augmenter.apply(pixels, epoch, record["key"])
                pictures.append(self._inputs.fitted(pixels))
                used.append(number)
            except BadPicture as bad:
                rejected[number] = bad.reason
            sources.append(max(len(pictures) - 1, 0))
        reasons = zip(records, rejected, strict=True)
        lost = np.asarray([self._ids[record["label"]] if why else _USED for record, why in reasons], np.int64)
        if not pictures:
            return Decoded(np.zeros(0, np.uint8), np.zeros(0, np.int64), (), rejected, lost)
        shown = [used[source] for source in sources]
        stacked = stack(pictures)
        return Decoded(
            stacked if len(pictures) == len(records) else stacked[np.asarray(sources)],
            np.asarray([self._ids[records[number]["label"]] for number in shown], np.int64),
            [records[number]["key"] for number in shown],
            rejected,
            lost,
        )


def cut_table(table: pa.Table, max_rows: int) -> Iterator[pa.Table]:
    """A table in pieces of `max_rows` and one of what is left."""
    for first in range(0, table.num_rows, max_rows):
        yield table.slice(first, max_rows)


def regrouped(parts: Iterator[Decoded], rows: Rows, size: int, total: int) -> Iterator[Decoded]:
    """The next `total` pictures of `parts`, `size` at a time; what is left of the last part is lost.

    Args:
        parts: in order.
        rows: of the dataset, for errors.
        size: of each result; the last may be smaller.
        total: a whole number of parts.

    Raises:
        StriateError: when none of the pictures can be used.
    """
    waiting: list[Decoded] = []
    held = 0
    for part in _filled(parts, rows, total):
        while len(part):
            taken = part[: size - held]
            part = part[len(taken) :]
            waiting.append(taken)
            held += len(taken)
            if held == size:
                yield Decoded.joined(waiting)
                waiting, held = [], 0
    if waiting:
        yield Decoded.joined(waiting)


def _filled(parts: Iterator[Decoded], rows: Rows, total: int) -> Iterator[Decoded]:
    """Parts of `total` pictures; the picture before one of which nothing can be used stands in for it, or the next."""
    last: Decoded | None = None
    early: list[Decoded] = []
    while total:
        part = next(parts)
        total -= len(part)
        if len(part.labels):
            last = part
            yield from (part[:1].standing_in(each) for each in early)
            early = []
            yield part
        elif last is None:
            early.append(part)
        else:
            yield last.standing_in(part)
    if early:
        reasons = Counter(reason for part in early for reason in part.rejected)
        raise StriateError(
            f"{rows.dataset}: none of {reasons.total():,} pictures can be used: {rejected_text(reasons)}"
        )
