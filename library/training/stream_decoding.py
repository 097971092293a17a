"""The pictures of a stream of shards: read and shuffled window by window, then decoded and augmented in chunks."""

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
from library.training.batches import USED, Batch
from library.training.rows import Part, Rows, rejected_text
from library.training.sampling import GROUP_SHARDS, Group, Window, window_rows


class WindowReader:
    """Reads windows of stored pictures in training order.

    Args:
        rows: the dataset's rows.
        read: reads a part of a shard into a table with the columns `bytes`, `key`, `label` and those that steps need.
        seed: seed of the order within a window.
        rank: rank of the worker that trains on them.
    """

    def __init__(self, rows: Rows, read: Callable[[Part], pa.Table], seed: int, rank: int) -> None:
        self._max_rows, self._read = window_rows(rows), read
        self._seed, self._rank = seed, rank
        self._shards = ThreadPoolExecutor(GROUP_SHARDS)

    def windows(self, groups: Iterable[Group], epoch: int) -> Iterator[pa.Table]:
        """Yields a table for each window of `groups`; the next window is read while one is used."""
        with ThreadPoolExecutor(1) as ahead:
            following = None
            for window in (window for group in groups for window in group.windows(self._max_rows)):
                current, following = following, ahead.submit(self.window, window, epoch)
                if current is not None:
                    yield current.result()
            if following is not None:
                yield following.result()

    def window(self, window: Window, epoch: int) -> pa.Table:
        """One window as a table, one row for each picture."""
        table = pa.concat_tables(self._shards.map(self._read, window.parts))
        order = np.arange(table.num_rows)
        if window.number is not None:
            order = generator("window", self._seed, epoch, self._rank, *window.number).permutation(table.num_rows)
        return table.take(pa.array(order[window.skip : window.skip + window.keep]))


@dataclass(frozen=True)
class DecodedChunk:
    """Decoded pictures in training order. A copy of a neighbour stands in for each unusable picture.

    If no picture of the chunk can be used, `pictures`, `labels` and `keys` are empty and the other two have n entries.

    Attributes:
        pictures: n x height x width x channels.
        labels: n class ids.
        keys: n keys.
        rejected: for each stand-in, why the picture that it replaces could not be used; else empty.
        replaced: for each stand-in, the class id of the picture that it replaces; else `USED`.
    """

    pictures: NDArray[Any]
    labels: NDArray[np.int64]
    keys: Sequence[str]
    rejected: Sequence[str]
    replaced: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.replaced)

    def stand_in_for(self, other: DecodedChunk) -> DecodedChunk:
        """The last picture, repeated as often as a chunk without usable pictures has rows."""
        count = len(other)
        pictures = np.repeat(self.pictures[-1:], count, axis=0)
        labels = np.repeat(self.labels[-1:], count)
        return DecodedChunk(pictures, labels, [*self.keys[-1:]] * count, other.rejected, other.replaced)

    def __getitem__(self, rows: slice) -> DecodedChunk:
        return DecodedChunk(
            self.pictures[rows], self.labels[rows], self.keys[rows], self.rejected[rows], self.replaced[rows]
        )

    def to_batch(self, size: int) -> Batch:
        """This worker's part of a batch of `size` pictures."""
        return Batch(self.pictures, self.labels, self.keys, size)

    def without_stand_ins(self) -> Batch:
        """A batch of the usable pictures only."""
        good = np.flatnonzero(self.replaced == USED)
        if len(good) == len(self):
            return self.to_batch(len(self))
        keys = [self.keys[row] for row in good.tolist()]
        return Batch(self.pictures[good], self.labels[good], keys, len(good))

    @classmethod
    def concatenate(cls, parts: Sequence[DecodedChunk]) -> DecodedChunk:
        """Joins parts in order."""
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
            np.concatenate([part.replaced for part in parts]),
        )


class ChunkDecoder:
    """Decodes and augments chunks of stored pictures.

    Args:
        classes: class names by id.
        inputs: the model's input pipeline.
        augmenter: None for no augmentation.
    """

    def __init__(self, classes: Sequence[str], inputs: InputPipeline, augmenter: Augmenter | None) -> None:
        self._inputs, self._augmenter = inputs, augmenter
        self._ids = {name: number for number, name in enumerate(classes)}

    def decode(self, records: Sequence[Mapping[str, Any]], epoch: int) -> DecodedChunk:
        """Decodes as many pictures as there are records.

        A copy of the picture before it, or else after it, stands in for a picture that cannot be used.

        Args:
            records: `bytes`, `key`, `label` and the columns that steps need.
            epoch: from 0.
        """
        pictures: list[Pixels] = []
        sources: list[int] = []  # for each record, the index in `pictures`
        used: list[int] = []  # for each picture, the index of its record
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
        replaced = np.asarray([self._ids[record["label"]] if reason else USED for record, reason in reasons], np.int64)
        if not pictures:
            return DecodedChunk(np.zeros(0, np.uint8), np.zeros(0, np.int64), (), rejected, replaced)
        numbers = [used[source] for source in sources]
        stacked = stack(pictures)
        return DecodedChunk(
            stacked if len(pictures) == len(records) else stacked[np.asarray(sources)],
            np.asarray([self._ids[records[number]["label"]] for number in numbers], np.int64),
            [records[number]["key"] for number in numbers],
            rejected,
            replaced,
        )


def cut_table(table: pa.Table, max_rows: int) -> Iterator[pa.Table]:
    """Yields a table in pieces of `max_rows`, the last one possibly smaller."""
    for first in range(0, table.num_rows, max_rows):
        yield table.slice(first, max_rows)


def rebatch(chunks: Iterator[DecodedChunk], rows: Rows, size: int, total: int) -> Iterator[DecodedChunk]:
    """Yields the next `total` pictures of `chunks`, `size` at a time; the last result may be smaller.

    Args:
        chunks: in order.
        rows: the dataset's rows, for errors.
        size: pictures of each result.
        total: pictures of a whole number of chunks.

    Raises:
        StriateError: when none of the pictures can be used.
    """
    waiting: list[DecodedChunk] = []
    count = 0
    for chunk in _with_stand_ins(chunks, rows, total):
        while len(chunk):
            head = chunk[: size - count]
            chunk = chunk[len(head) :]
            waiting.append(head)
            count += len(head)
            if count == size:
                yield DecodedChunk.concatenate(waiting)
                waiting, count = [], 0
    if waiting:
        yield DecodedChunk.concatenate(waiting)


def _with_stand_ins(chunks: Iterator[DecodedChunk], rows: Rows, total: int) -> Iterator[DecodedChunk]:
    """Yields chunks of `total` pictures; the picture before or after a chunk without usable pictures replaces it."""
    last: DecodedChunk | None = None
    early: list[DecodedChunk] = []
    while total:
        chunk = next(chunks)
        total -= len(chunk)
        if len(chunk.labels):
            last = chunk
            yield from (chunk[:1].stand_in_for(each) for each in early)
            early = []
            yield chunk
        elif last is None:
            early.append(chunk)
        else:
            yield last.stand_in_for(chunk)
    if early:
        reasons = Counter(reason for chunk in early for reason in chunk.rejected)
        raise StriateError(
            f"{rows.dataset}: none of {reasons.total():,} pictures can be used: {rejected_text(reasons)}"
        )
