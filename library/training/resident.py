"""Pictures decoded once and kept in memory, shared by the workers of a machine."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError
from library.imaging.picture import Pixels
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline, scaled, stack
from library.training.order import batch_rows, epoch_order, steps_per_epoch
from library.training.rows import Part, Rows, read_pictures, rejected_text, vanished
from library.training.training_batch import Batch

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


def decode_rows(rows: Rows, part: Part, inputs: InputPipeline, *, fitted: bool) -> Resident:
    """Decode some rows of one shard.

    Args:
        rows: of the dataset.
        part: which of them.
        inputs: what a model sees.
        fitted: give each picture the model's size; else only the pipeline's own steps are run.
    """
    pictures: list[Pixels] = []
    labels: list[int] = []
    keys: list[str] = []
    rejected: Counter[str] = Counter()
    for record in read_pictures(rows, part, inputs.columns):
        try:
            others = {name: value for name, value in record.items() if name != "bytes"}
            pixels = inputs.before_fit(record["bytes"], **others)
            pictures.append(inputs.fitted(pixels) if fitted else pixels)
            labels.append(rows.class_ids[record["label"]])
            keys.append(record["key"])
        except BadPicture as bad:
            rejected[bad.reason] += 1
    if len({picture.dtype for picture in pictures}) > 1:
        pictures = [scaled(picture) for picture in pictures]
    return Resident.of(pictures, labels, keys, rejected)


class ResidentFeed:
    """Batches out of memory. Threads augment some batches ahead, also over the end of an epoch.

    Args:
        train: the training pictures; `fitted` where nothing is augmented.
        val: the validation pictures, fitted; None for none.
        inputs: gives augmented pictures the model's size.
        augmenter: None for none.
        batch_size: over all workers.
        seed: of the order.
        balanced: every class equally often.
        threads: that augment.

    Attributes:
        steps_per_epoch: batches of an epoch.
        rejected: training pictures that could not be used, by reason.
        unusable: nothing: whether classes have vanished is known before the training starts.
    """

    unusable = ()

    def __init__(
        self,
        train: Resident,
        val: Resident | None,
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
        self._train, self._val, self._inputs, self._augmenter = train, val, inputs, augmenter
        self._uniform = train.uniform if augmenter is None else None
        self._batch_size, self._seed, self._balanced = min(batch_size, len(train)), seed, balanced
        self._rank, self._world_size = rank, world_size
        self._pool = ThreadPoolExecutor(threads)
        self._ahead: deque[Future[tuple[Batch, Counter[str]]]] = deque()
        self._steps: Iterator[tuple[int, NDArray[np.int64]]] = iter(())
        self._left = 0
        self.steps_per_epoch = steps_per_epoch(len(train), self._batch_size)
        self.rejected = Counter(train.rejected)

    def start(self, epoch: int, first_step: int, steps: int) -> None:
        """Take `steps` steps from here on."""
        self._steps, self._left = self._rows_of_steps(epoch, first_step, steps), self.steps_per_epoch - first_step

    def _rows_of_steps(self, epoch: int, first_step: int, steps: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Epoch and rows of each step that is left."""
        while steps:
            order = epoch_order(self._train.labels, self._seed, epoch, balanced=self._balanced)
            for step in range(first_step, min(self.steps_per_epoch, first_step + steps)):
                steps -= 1
                yield epoch, batch_rows(order, step, self._batch_size, self._rank, self._world_size)
            epoch, first_step = epoch + 1, 0

    def training(self) -> Iterator[Batch]:
        """This worker's part of each batch that is left of the epoch under way."""
        left, self._left = self._left, self.steps_per_epoch
        if self._uniform is not None:
            for _, rows in itertools.islice(self._steps, left):
                yield self._batch(self._uniform[rows], rows)
            return
        for _ in range(left):
            for epoch, rows in itertools.islice(self._steps, _AHEAD + 1 - len(self._ahead)):
                self._ahead.append(self._pool.submit(self._augmented, rows, epoch))
            if not self._ahead:
                return
            batch, rejected = self._ahead.popleft().result()
            self.rejected += rejected
            yield batch

    def _augmented(self, rows: NDArray[np.int64], epoch: int) -> tuple[Batch, Counter[str]]:
        """Augmented pictures. One that augmentation or the model cannot take is replaced by one before it in the batch,
        so that each worker keeps its share, and counted."""
        pictures: list[Pixels] = []
        used: list[int] = []
        rejected: Counter[str] = Counter()
        last = ""
        for row in rows.tolist():
            try:
                pixels: Pixels = self._train[row]
                if self._augmenter is not None:
                    pixels = self._augmenter.apply(pixels, epoch, str(self._train.keys[row]))
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
        return Batch(pictures, self._train.labels[rows], self._train.keys[rows].tolist(), self._batch_size)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """This worker's part of the validation pictures; together the workers see each once."""
        data = self._val
        if data is None:
            return
        mine = np.arange(len(data) * self._rank // self._world_size, len(data) * (self._rank + 1) // self._world_size)
        uniform = data.uniform
        for first in range(0, len(mine), batch_size):
            rows = mine[first : first + batch_size]
            pictures = uniform[rows] if uniform is not None else stack([data[row] for row in rows])
            yield Batch(pictures, data.labels[rows], data.keys[rows].tolist(), len(rows))
