"""Pictures decoded once and kept in memory, shared by the workers of a machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.augmentation import Augmenter
from library.errors import BadPicture, StriateError
from library.inputs import InputPipeline, scaled, stack
from library.picture import Pixels
from library.training.batch import Batch
from library.training.order import batch_rows, epoch_order, steps_per_epoch
from library.training.rows import Rows, read_pictures, rejected_text, vanished

_AHEAD = 4  # batches that are augmented before they are asked for


@dataclass(frozen=True)
class Resident:
    """Decoded pictures.

    Attributes:
        flat: the samples of all pictures, one after the other; shared memory, never written to.
        starts: where each picture begins in `flat`.
        shapes: height, width and channels of each; features have the shape of one row.
        labels: class ids.
        keys: of the pictures.
        rejected: pictures that could not be used, by reason.
    """

    flat: NDArray[Any]
    starts: NDArray[np.int64]
    shapes: NDArray[np.int32]
    labels: NDArray[np.int64]
    keys: NDArray[Any]
    rejected: Counter[str]

    @classmethod
    def of(
        cls, pictures: Sequence[NDArray[Any]], labels: Sequence[int], keys: Sequence[str], rejected: Counter[str]
    ) -> Resident:
        """Put pictures of one dtype one after the other."""
        sizes = [picture.size for picture in pictures]
        return cls(
            np.concatenate([picture.reshape(-1) for picture in pictures]) if pictures else np.zeros(0, np.uint8),
            np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if pictures else np.zeros(0, np.int64),
            np.asarray([picture.shape for picture in pictures], np.int32),
            np.asarray(labels, np.int64),
            np.asarray(keys, object),
            rejected,
        )

    @classmethod
    def joined(cls, parts: Sequence[Resident]) -> Resident:
        """Parts in order, as one."""
        rejected: Counter[str] = Counter()
        for part in parts:
            rejected += part.rejected
        parts = [part for part in parts if len(part)] or list(parts[:1])
        flats = [part.flat for part in parts]
        if len({flat.dtype for flat in flats}) > 1:
            flats = [scaled(flat) for flat in flats]
        offsets = np.concatenate([[0], np.cumsum([part.flat.size for part in parts])[:-1]])
        return cls(
            np.concatenate(flats),
            np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)]),
            np.concatenate([part.shapes for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.keys for part in parts]),
            rejected,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> NDArray[Any]:
        shape = self.shapes[row]
        start = self.starts[row]
        return self.flat[start : start + int(np.prod(shape))].reshape(shape)

    def check_classes(self, dataset: str, classes: Sequence[str]) -> None:
        """Refuse classes of which no picture is left.

        Raises:
            StriateError: names them, and why pictures could not be used.
        """
        counts = np.bincount(self.labels, minlength=len(classes))
        gone = [name for name, count in zip(classes, counts, strict=True) if not count]
        if gone:
            raise vanished(dataset, gone, self.rejected)

    @property
    def uniform(self) -> NDArray[Any] | None:
        """All pictures as one array (N x height x width x channels), where they are of one shape."""
        if not len(self) or (self.shapes != self.shapes[0]).any():
            return None
        return self.flat.reshape(len(self), *self.shapes[0])


def decode_rows(rows: Rows, shard: int, inputs: InputPipeline, *, fitted: bool) -> Resident:
    """Decode the rows of one shard.

    Args:
        rows: of the dataset.
        shard: number of the shard.
        inputs: what a model sees.
        fitted: give each picture the model's size; else only the pipeline's own steps are run.
    """
    mine = rows.take(rows.shard == shard)
    pictures: list[Pixels] = []
    kept: list[int] = []
    rejected: Counter[str] = Counter()
    for position, record in enumerate(read_pictures(rows, shard, mine.row, inputs.columns)):
        try:
            others = {name: value for name, value in record.items() if name != "bytes"}
            pixels = inputs.before_fit(record["bytes"], **others)
            pictures.append(inputs.fitted(pixels) if fitted else pixels)
            kept.append(position)
        except BadPicture as bad:
            rejected[bad.reason] += 1
    if len({picture.dtype for picture in pictures}) > 1:
        pictures = [scaled(picture) for picture in pictures]
    chosen = mine.take(np.asarray(kept, np.int64))
    return Resident.of(pictures, chosen.labels.tolist(), chosen.keys.tolist(), rejected)


class ResidentFeed:
    """Batches out of memory.

    Args:
        data: the training pictures; `fitted` where nothing is augmented.
        inputs: gives augmented pictures the model's size.
        augmenter: None for none.
        batch_size: over all workers.
        seed: of the order.
        balanced: every class equally often.
        threads: that augment.
    """

    def __init__(
        self,
        data: Resident,
        inputs: InputPipeline,
        augmenter: Augmenter | None,
        *,
        batch_size: int,
        seed: int,
        balanced: bool,
        rank: int,
        world_size: int,
        threads: int = 1,
    ) -> None:
        self._data, self._inputs, self._augmenter = data, inputs, augmenter
        self._uniform = data.uniform if augmenter is None else None
        self._batch_size, self._seed, self._balanced = min(batch_size, len(data)), seed, balanced
        self._rank, self._world_size, self._threads = rank, world_size, threads
        self.steps_per_epoch = steps_per_epoch(len(data), self._batch_size)
        self.rejected = Counter(data.rejected)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This worker's part of every batch of an epoch, from `first_step` on."""
        order = epoch_order(self._data.labels, self._seed, epoch, balanced=self._balanced)
        parts = (
            batch_rows(order, step, self._batch_size, self._rank, self._world_size)
            for step in range(first_step, self.steps_per_epoch)
        )
        if self._uniform is not None:
            for rows in parts:
                yield self._batch(self._uniform[rows], rows)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            ahead: list[Future[tuple[Batch, Counter[str]]]] = []
            for rows in parts:
                ahead.append(pool.submit(self._made, rows, epoch))
                if len(ahead) > _AHEAD:
                    yield self._counted(ahead.pop(0))
            for future in ahead:
                yield self._counted(future)

    def _counted(self, made: Future[tuple[Batch, Counter[str]]]) -> Batch:
        batch, rejected = made.result()
        self.rejected += rejected
        return batch

    def _made(self, rows: NDArray[np.int64], epoch: int) -> tuple[Batch, Counter[str]]:
        """Augmented pictures. One that augmentation or the model cannot take is replaced by one before it in the batch,
        so that each worker keeps its share, and counted."""
        pictures: list[Pixels] = []
        used: list[int] = []
        rejected: Counter[str] = Counter()
        last = ""
        for row in rows.tolist():
            try:
                pixels: Pixels = self._data[row]
                if self._augmenter is not None:
                    pixels = self._augmenter.apply(pixels, epoch, str(self._data.keys[row]))
                pictures.append(self._inputs.fitted(pixels))
                used.append(row)
            except BadPicture as bad:
                rejected[bad.reason] += 1
                last = bad.detail
        if not pictures and len(rows):
            raise StriateError(
                f"no picture of a whole batch can be used: {rejected_text(rejected)}; the last one: {last}"
            )
        usable = len(pictures)
        for number in range(len(rows) - usable):
            pictures.append(pictures[number % usable])
            used.append(used[number % usable])
        return self._batch(stack(pictures), np.asarray(used, np.int64)), rejected

    def _batch(self, pictures: NDArray[Any], rows: NDArray[np.int64]) -> Batch:
        return Batch(pictures, self._data.labels[rows], self._data.keys[rows].tolist(), self._batch_size)


def scoring_batches(data: Resident, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
    """This worker's part of the validation pictures; together the workers see each once."""
    rows = np.arange(len(data) * rank // world_size, len(data) * (rank + 1) // world_size)
    uniform = data.uniform
    for first in range(0, len(rows), batch_size):
        chosen = rows[first : first + batch_size]
        pictures = uniform[chosen] if uniform is not None else stack([data[row] for row in chosen])
        yield Batch(pictures, data.labels[chosen], data.keys[chosen].tolist(), len(chosen))
