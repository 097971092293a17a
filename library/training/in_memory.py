"""Pictures that are decoded once and stay in memory, shared by the workers of a machine. Imports no torch."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError
from library.imaging.picture import Pixels
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline, scaled, stack
from library.training.augmenting.choice import AugmentPlace, batch_drawer
from library.training.augmenting.operations import RaggedPictures, UndonePictures
from library.training.batches import Batch, PictureRows
from library.training.rows import Part, Rows, missing_classes_error, read_pictures, rejected_text
from library.training.sampling import batch_rows, epoch_order, steps_per_epoch

if TYPE_CHECKING:
    import torch  # takes seconds, and the driver and decoders import this module

_BATCHES_AHEAD = 4  # batches that are augmented ahead of their use


@dataclass(frozen=True)
class PackedPictures:
    """Decoded pictures of any size, or their features, packed into one array.

    Attributes:
        flat: the samples of all pictures, one picture after the other; shared memory, read-only.
        starts: index of each picture's first sample in `flat`.
        shapes: n x 3, height, width and channels of each picture; n x 1 for features.
        labels: n class ids.
        keys: n keys.
        rejected: pictures that could not be used, by reason.
    """

    flat: NDArray[Any]
    starts: NDArray[np.int64]
    shapes: NDArray[np.int32]
    labels: NDArray[np.int64]
    keys: NDArray[Any]
    rejected: Counter[str]

    @classmethod
    def pack(
        cls, pictures: Sequence[NDArray[Any]], labels: Sequence[int], keys: Sequence[str], rejected: Counter[str]
    ) -> PackedPictures:
        """Packs pictures (height x width x channels each) or features (a vector each) of one dtype."""
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
    def concatenate(cls, parts: Sequence[PackedPictures]) -> PackedPictures:
        """Joins parts in order; samples are scaled to one dtype where the parts' dtypes differ."""
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
        """Checks that every class has a usable picture.

        Raises:
            StriateError: names the classes without one, and why pictures were rejected.
        """
        counts = np.bincount(self.labels, minlength=len(classes))
        missing = [name for name, count in zip(classes, counts, strict=True) if not count]
        if missing:
            raise missing_classes_error(dataset, missing, self.rejected)

    @property
    def uniform(self) -> NDArray[Any] | None:
        """All pictures as one array, n x height x width x channels; None where shapes differ."""
        if not len(self) or (self.shapes != self.shapes[0]).any():
            return None
        return self.flat.reshape(len(self), *self.shapes[0])


def decode_rows(rows: Rows, part: Part, inputs: InputPipeline, *, fitted: bool) -> PackedPictures:
    """Decodes some rows of one shard.

    Args:
        rows: the dataset's rows.
        part: the rows to decode.
        inputs: the model's input pipeline.
        fitted: whether each picture is resized to the model's input; if not, only the pipeline's own steps are run.
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
    return PackedPictures.pack(pictures, labels, keys, rejected)


class MemoryLoader:
    """A `BatchLoader` over pictures in memory. Threads augment the next batches, also those of the next epoch.

    Args:
        train: training pictures; already resized to the model's input where nothing is augmented.
        val: validation pictures, resized to the model's input; None for no validation.
        inputs: resizes augmented pictures to the model's input.
        augmenter: augments training pictures; None for no augmentation.
        augmentation: where they are augmented; if on the device, this loader only draws, for a whole batch at a time.
        batch_size: pictures of a batch over all workers.
        seed: seed of the order.
        balanced: whether every class is taken equally often.
        rank: this worker's rank.
        world_size: number of workers.
        threads: number of threads that augment.
        place: moves pictures of one shape to where batches are taken from; by default they stay where they are.
    """

    unusable = ()  # the driver has checked the classes of decoded pictures

    def __init__(
        self,
        train: PackedPictures,
        val: PackedPictures | None,
        inputs: InputPipeline,
        augmenter: Augmenter | None,
        *,
        augmentation: AugmentPlace | None = None,
        batch_size: int,
        seed: int,
        balanced: bool,
        rank: int,
        world_size: int,
        threads: int = 1,
        place: Callable[[NDArray[Any]], PictureRows] = lambda pictures: pictures,
    ) -> None:
        self._train, self._val, self._inputs, self._augmenter = train, val, inputs, augmenter
        self.augmentation = augmentation
        self._drawer = batch_drawer(augmenter, inputs, augmentation)
        self._flat = train.flat if self._drawer is None else place(train.flat)[:]
        uniform = [train.uniform if augmenter is None else None, None if val is None else val.uniform]
        self._uniform, self._uniform_val = (None if pictures is None else place(pictures) for pictures in uniform)
        self._batch_size, self._seed, self._balanced = min(batch_size, len(train)), seed, balanced
        self._rank, self._world_size = rank, world_size
        self._pool = ThreadPoolExecutor(threads)
        self._augmented_batches: deque[Future[Batch]] = deque()
        self._steps: Iterator[tuple[int, NDArray[np.int64]]] = iter(())
        self._steps_left_in_epoch = 0
        self.steps_per_epoch = steps_per_epoch(len(train), self._batch_size)
        self.left_out = train.rejected.total()

    def start(self, epoch: int, first_step: int, steps: int) -> None:
        """Starts at step `first_step` of `epoch` (both from 0), for `steps` steps in all."""
        self._steps = self._rows_of_steps(epoch, first_step, steps)
        self._steps_left_in_epoch = self.steps_per_epoch - first_step

    def _rows_of_steps(self, epoch: int, first_step: int, steps: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yields the epoch and this worker's rows of each remaining step."""
        while steps:
            order = epoch_order(self._train.labels, self._seed, epoch, balanced=self._balanced)
            for step in range(first_step, min(self.steps_per_epoch, first_step + steps)):
                steps -= 1
                yield epoch, batch_rows(order, step, self._batch_size, self._rank, self._world_size)
            epoch, first_step = epoch + 1, 0

    def training(self) -> Iterator[Batch]:
        """Yields this worker's part of each remaining batch of the current epoch."""
        steps, self._steps_left_in_epoch = self._steps_left_in_epoch, self.steps_per_epoch
        if self._uniform is not None:
            for _, rows in itertools.islice(self._steps, steps):
                yield self._batch(self._uniform[rows], rows)
            return
        for _ in range(steps):
            for epoch, rows in itertools.islice(self._steps, _BATCHES_AHEAD + 1 - len(self._augmented_batches)):
                prepare = self._augment if self._drawer is None else self._draw
                self._augmented_batches.append(self._pool.submit(prepare, rows, epoch))
            if not self._augmented_batches:
                return
            yield self._augmented_batches.popleft().result()

    def _augment(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Augments the pictures of one batch, and counts those that augmentation or the model rejects.

        A rejected picture is replaced by another one of the batch, so that each worker's part keeps its size.
        """
        pictures: list[Pixels] = []
        used: list[int] = []
        rejected: Counter[str] = Counter()
        detail = ""
        for row in rows.tolist():
            try:
                pixels: Pixels = self._train[row]
                if self._augmenter is not None:
                    pixels = self._augmenter.apply(pixels, epoch, str(self._train.keys[row]))
                pictures.append(self._inputs.fitted(pixels))
                used.append(row)
            except BadPicture as bad:
                rejected[bad.reason] += 1
                detail = bad.detail
        places = _with_replacements(len(pictures), len(rows), rejected, detail)
        pictures = [pictures[place] for place in places]
        return self._batch(stack(pictures), np.asarray(used, np.int64)[places], rejected.total())

    def _draw(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Like `_augment`, but leaves it to the device to change any pixel."""
        assert self._drawer is not None
        train, rejected = self._train, Counter[str]()
        drawn = self._drawer.draw(train.shapes[rows], epoch, train.keys[rows].tolist())
        if drawn.rejected:
            rejected.update(bad.reason for bad in drawn.rejected.values())
            usable = np.setdiff1d(np.arange(len(rows)), list(drawn.rejected))
            last = drawn.rejected[max(drawn.rejected)]
            rows = rows[usable[_with_replacements(len(usable), len(rows), rejected, last.detail)]]
            drawn = self._drawer.draw(train.shapes[rows], epoch, train.keys[rows].tolist())
        shapes = train.shapes[rows].astype(np.int64)
        pictures = RaggedPictures(self._flat, train.starts[rows], shapes, shapes)
        return self._batch(UndonePictures(pictures, drawn), rows, rejected.total())

    def _batch(
        self, pictures: NDArray[Any] | torch.Tensor | UndonePictures, rows: NDArray[np.int64], rejected: int = 0
    ) -> Batch:
        return Batch(pictures, self._train.labels[rows], self._train.keys[rows].tolist(), self._batch_size, rejected)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """Yields this worker's part of the validation pictures; together the workers see each picture once."""
        data = self._val
        if data is None:
            return
        first, last = (len(data) * rank // self._world_size for rank in (self._rank, self._rank + 1))
        uniform = self._uniform_val
        for begin in range(first, last, batch_size):
            rows = np.arange(begin, min(begin + batch_size, last))
            pictures = uniform[rows] if uniform is not None else stack([data[row] for row in rows.tolist()])
            yield Batch(pictures, data.labels[rows], data.keys[rows].tolist(), len(rows))


def _with_replacements(usable: int, size: int, rejected: Counter[str], detail: str) -> list[int]:
    """For each place of a batch the number of a usable picture; the first ones replace those that were rejected.

    Raises:
        StriateError: where no picture is usable; `detail` says why the last one is not.
    """
    if not usable and size:
        raise StriateError(
            f"no picture of a whole batch can be used: {rejected_text(rejected)}; the last one: {detail}"
        )
    return [*range(usable), *(number % usable for number in range(size - usable))]
