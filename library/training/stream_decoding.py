"""The pictures of a stream of shards: read and shuffled window by window, then decoded and augmented in chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError, UsageError
from library.imaging.picture import Pixels
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline, scaled, stack
from library.randomness import generator
from library.training.augmenting.choice import AugmentPlace, batch_drawer
from library.training.augmenting.drawing import BatchDrawer
from library.training.augmenting.operations import RaggedPictures
from library.training.batches import USED, Batch
from library.training.rows import Part, Rows, rejected_text
from library.training.sampling import GROUP_SHARDS, Group, Window, window_rows

#: The most bytes of decoded pictures, before they are cut, in one chunk; a single larger picture is a chunk of its own.
MAX_CHUNK_BYTES = 48 * 2**20


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
        pictures: n x height x width x channels; or pictures of any sizes, which have yet to be augmented.
        labels: n class ids.
        keys: n keys.
        rejected: for each stand-in, why the picture that it replaces could not be used; else empty.
        replaced: for each stand-in, the class id of the picture that it replaces; else `USED`.
    """

    pictures: NDArray[Any] | RaggedPictures
    labels: NDArray[np.int64]
    keys: Sequence[str]
    rejected: Sequence[str]
    replaced: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.replaced)

    def stand_in_for(self, other: DecodedChunk) -> DecodedChunk:
        """The last picture, repeated as often as a chunk without usable pictures has rows."""
        count = len(other)
        pictures = self.pictures[np.full(count, len(self.pictures) - 1)]
        labels = np.repeat(self.labels[-1:], count)
        return DecodedChunk(pictures, labels, [*self.keys[-1:]] * count, other.rejected, other.replaced)

    def __getitem__(self, rows: slice) -> DecodedChunk:
        return DecodedChunk(
            self.pictures[rows], self.labels[rows], self.keys[rows], self.rejected[rows], self.replaced[rows]
        )

    def to_batch(self, size: int, drawer: BatchDrawer | None = None, epoch: int = 0) -> Batch:
        """This worker's part of a batch of `size` pictures; `drawer` draws for those that have yet to be augmented."""
        pictures, rejected = self.pictures, sum(map(bool, self.rejected))
        if isinstance(pictures, RaggedPictures):
            assert drawer is not None
            return Batch(drawer.undone(pictures, epoch, self.keys), self.labels, self.keys, size, rejected)
        return Batch(pictures, self.labels, self.keys, size, rejected, 0 if drawer is None else len(self))

    def without_stand_ins(self) -> Batch:
        """A batch of the usable pictures only."""
        good = np.flatnonzero(self.replaced == USED)
        if len(good) == len(self):
            return self.to_batch(len(self))
        keys = [self.keys[row] for row in good.tolist()]
        assert not isinstance(self.pictures, RaggedPictures)
        return Batch(self.pictures[good], self.labels[good], keys, len(good))

    @classmethod
    def concatenate(cls, parts: Sequence[DecodedChunk], finish: Finish) -> DecodedChunk:
        """Joins parts in order; `finish` augments the pictures of a part where other parts have been augmented."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            _joined(parts, finish),
            np.concatenate([part.labels for part in parts]),
            [key for part in parts for key in part.keys],
            [reason for part in parts for reason in part.rejected],
            np.concatenate([part.replaced for part in parts]),
        )


#: Augments the pictures of a chunk that have yet to be.
Finish: TypeAlias = Callable[[DecodedChunk], NDArray[Any]]


def _joined(parts: Sequence[DecodedChunk], finish: Finish) -> NDArray[Any] | RaggedPictures:
    undone = [part.pictures for part in parts if isinstance(part.pictures, RaggedPictures)]
    if len(undone) == len(parts):
        return RaggedPictures.concatenate(undone)
    pictures = [finish(part) if isinstance(part.pictures, RaggedPictures) else part.pictures for part in parts]
    if len({array.dtype for array in pictures}) > 1:
        pictures = [scaled(array) for array in pictures]
    return np.concatenate(pictures)


def _never(chunk: DecodedChunk) -> NDArray[Any]:
    raise AssertionError("only training pictures are left to be augmented later")


class ChunkDecoder:
    """Decodes and augments chunks of stored pictures.

    Args:
        classes: class names by id.
        inputs: the model's input pipeline.
        augmenter: None for no augmentation.
        place: where pictures are augmented; what the device augments is only decoded here. None is the CPU.
        max_bytes: the most bytes of decoded pictures in one chunk.
    """

    def __init__(
        self,
        classes: Sequence[str],
        inputs: InputPipeline,
        augmenter: Augmenter | None,
        place: AugmentPlace | None = None,
        *,
        max_bytes: int = MAX_CHUNK_BYTES,
    ) -> None:
        self._inputs, self._augmenter, self._place, self._max_bytes = inputs, augmenter, place, max_bytes
        self._drawer = batch_drawer(augmenter, inputs, place)
        self._ids = {name: number for number, name in enumerate(classes)}

    def decode(self, records: Sequence[Mapping[str, Any]], epoch: int) -> Iterator[DecodedChunk]:
        """Yields as many pictures as there are records, in one chunk, or in several where `max_bytes` asks for that.

        A copy of the picture before it, or else after it, stands in for a picture that cannot be used.

        Args:
            records: `bytes`, `key`, `label` and the columns that steps need.
            epoch: from 0.

        Raises:
            StriateError: for `augment_on: device` with a picture of other than 8 bits.
        """
        opened: dict[int, Pixels] = {}
        rejected: list[str] = []
        first = held = 0
        for number, record in enumerate(records):
            try:
                pixels = self._opened(record, epoch)
            except BadPicture as bad:
                rejected.append(bad.reason)
                continue
            if opened and held + pixels.nbytes > self._max_bytes:
                chunk = self._chunk(records[first:number], opened, rejected, epoch)
                opened, rejected, first, held = {}, [], number, 0
                yield chunk
                del chunk
            opened[len(rejected)] = pixels
            rejected.append("")
            held += pixels.nbytes
        chunk = self._chunk(records[first:], opened, rejected, epoch)
        opened.clear()  # it may hold more than is used of the pictures
        yield chunk

    def _opened(self, record: Mapping[str, Any], epoch: int) -> Pixels:
        """A decoded picture, which has been augmented unless the device does that."""
        others = {name: value for name, value in record.items() if name != "bytes"}
        pixels = self._inputs.before_fit(record["bytes"], **others)
        if self._drawer is None:
            return self._done(pixels, record["key"], epoch)
        assert self._place is not None
        try:
            self._place.for_samples(pixels.dtype)
        except UsageError as error:
            raise StriateError(f"picture '{record['key']}': {error}") from None
        return pixels

    def _chunk(
        self, records: Sequence[Mapping[str, Any]], opened: dict[int, Pixels], rejected: list[str], epoch: int
    ) -> DecodedChunk:
        """A chunk of opened pictures, by their records; `rejected` has why a record has none, or is empty."""
        pictures = self._finished(opened, records, rejected, epoch)
        reasons = zip(records, rejected, strict=True)
        replaced = np.asarray([self._ids[record["label"]] if reason else USED for record, reason in reasons], np.int64)
        used = [number for number, reason in enumerate(rejected) if not reason]
        if not used:
            return DecodedChunk(np.zeros(0, np.uint8), np.zeros(0, np.int64), (), rejected, replaced)
        # For each record the picture before it, or else the first one.
        sources = np.maximum(np.searchsorted(used, np.arange(len(records)), side="right") - 1, 0)
        numbers = [used[source] for source in sources.tolist()]
        return DecodedChunk(
            pictures if len(used) == len(records) else pictures[sources],
            np.asarray([self._ids[records[number]["label"]] for number in numbers], np.int64),
            [records[number]["key"] for number in numbers],
            rejected,
            replaced,
        )

    def _finished(
        self, opened: dict[int, Pixels], records: Sequence[Mapping[str, Any]], rejected: list[str], epoch: int
    ) -> NDArray[Any] | RaggedPictures:
        """The usable ones of decoded pictures, by their records; writes to `rejected` why another one is not."""
        if not opened:
            return np.zeros(0, np.uint8)
        if self._drawer is None:
            return stack(list(opened.values()))
        keys = [records[number]["key"] for number in opened]
        if all(pixels.dtype == np.uint8 for pixels in opened.values()):
            shapes = np.asarray([pixels.shape for pixels in opened.values()], np.int64)
            drawn = self._drawer.draw(shapes, epoch, keys)
            numbers = list(opened)
            for place, bad in drawn.rejected.items():
                rejected[numbers[place]] = bad.reason
            if drawn.rejected:
                kept = [place for place in range(len(numbers)) if place not in drawn.rejected]
                if not kept:
                    return np.zeros(0, np.uint8)
                shapes, keys = shapes[kept], [keys[place] for place in kept]
                opened = {numbers[place]: opened[numbers[place]] for place in kept}
            return self._drawer.packed(list(opened.values()), shapes, epoch, keys)
        done: list[Pixels] = []
        for (number, pixels), key in zip(opened.items(), keys, strict=True):
            try:
                done.append(self._done(pixels, key, epoch))
            except BadPicture as bad:
                rejected[number] = bad.reason
        return stack(done) if done else np.zeros(0, np.uint8)

    def _done(self, pixels: Pixels, key: str, epoch: int) -> Pixels:
        if self._augmenter is not None:
            pixels = self._augmenter.apply(pixels, epoch, key)
        return self._inputs.fitted(pixels)


def cut_table(table: pa.Table, max_rows: int) -> Iterator[pa.Table]:
    """Yields a table in pieces of `max_rows`, the last one possibly smaller."""
    for first in range(0, table.num_rows, max_rows):
        yield table.slice(first, max_rows)


def rebatch(
    chunks: Iterator[DecodedChunk], rows: Rows, size: int, total: int, finish: Finish = _never
) -> Iterator[DecodedChunk]:
    """Yields the next `total` pictures of `chunks`, `size` at a time; the last result may be smaller.

    Args:
        chunks: in order.
        rows: the dataset's rows, for errors.
        size: pictures of each result.
        total: pictures of a whole number of chunks.
        finish: augments the pictures of a chunk where others of its result have been augmented.

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
                yield DecodedChunk.concatenate(waiting, finish)
                waiting, count = [], 0
    if waiting:
        yield DecodedChunk.concatenate(waiting, finish)


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
