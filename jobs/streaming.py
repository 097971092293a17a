"""Training pictures streamed through Ray Data: read, decoded and augmented beside the workers, epoch by epoch.

An epoch takes the shards in a new order. Their rows, one shard after the other, are cut into as many equal parts as
there are workers; each worker reads its part in windows of a few shards and shuffles inside each window. So a shard is
read by one worker (two, where a cut falls into it), memory is bounded by the window, and the order hangs on the seed,
the epoch and the number of workers alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext

from library.augmentation import Augmenter
from library.errors import BadPicture, StriateError
from library.inputs import InputPipeline, stack
from library.randomness import generator
from library.training.batch import Batch
from library.training.order import steps_per_epoch
from library.training.rows import Rows, read_pictures
from library.training.windows import Window, cut_windows, windows_of


class StreamFeed:
    """Batches streamed from shards; arguments as `ResidentFeed`.

    Args:
        decoders: actors of this worker.
        decoder_cpus: logical CPUs of each.
    """

    def __init__(
        self,
        rows: Rows,
        inputs: InputPipeline,
        augmenter: Augmenter | None,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        decoders: int,
        decoder_cpus: float,
    ) -> None:
        self._rows, self._inputs, self._augmenter, self._seed = rows, inputs, augmenter, seed
        self._rank, self._world_size = rank, world_size
        self._decoders = (decoders, decoder_cpus)
        self._batch_size = min(batch_size, len(rows))
        local = self._batch_size // world_size
        if local * world_size != self._batch_size:
            raise StriateError(
                f"batch_size {self._batch_size} must be a multiple of the {world_size} workers to stream"
            )
        self._local = local
        self.steps_per_epoch = steps_per_epoch(len(rows), self._batch_size)
        self.rejected: Counter[str] = Counter()

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This worker's part of each batch of an epoch, from `first_step` on."""
        counts = np.bincount(self._rows.shard, minlength=len(self._rows.shards)).astype(np.int64)
        order = generator("shards", self._seed, epoch).permutation(len(counts))
        mine = self.steps_per_epoch * self._local
        first = len(self._rows) * self._rank // self._world_size
        windows = windows_of(counts, order.tolist(), first, first + mine, shuffled=True)
        windows = cut_windows(windows, first_step * self._local, mine)
        decoder = (self._rows, self._inputs, self._augmenter, self._seed, epoch, self._rank)
        for pictures, labels, keys, reasons in _streamed(decoder, windows, self._local, self._decoders):
            self.rejected.update(reason for reason in reasons if reason)
            yield Batch(pictures, labels, keys, self._batch_size)


def stream_scoring(
    rows: Rows,
    inputs: InputPipeline,
    rank: int,
    world_size: int,
    decoders: int,
    decoder_cpus: float,
    batch_size: int,
) -> Iterator[Batch]:
    """This worker's part of the validation pictures; together the workers see each once."""
    counts = np.bincount(rows.shard, minlength=len(rows.shards)).astype(np.int64)
    first, last = len(rows) * rank // world_size, len(rows) * (rank + 1) // world_size
    windows = windows_of(counts, range(len(counts)), first, last, shuffled=False)
    decoder = (rows, inputs, None, 0, 0, rank)
    for pictures, labels, keys, reasons in _streamed(decoder, windows, batch_size, (decoders, decoder_cpus)):
        # Stand-ins keep the workers in step while they learn; a measure must not count them.
        good = np.asarray([not reason for reason in reasons])
        if good.any():
            kept = [key for key, usable in zip(keys, good, strict=True) if usable]
            yield Batch(pictures[good], labels[good], kept, len(kept))


def _streamed(
    decoder: tuple[Any, ...], windows: Sequence[Window], batch_size: int, decoders: tuple[int, float]
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64], list[str], list[str]]]:
    if not windows:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers, cpus = decoders
    pictures = ray.data.from_items([dataclasses.asdict(window) for window in windows], override_num_blocks=len(windows))
    decoded = pictures.map_batches(
        _WindowDecoder,
        fn_constructor_args=decoder,
        batch_size=1,
        batch_format="numpy",
        num_cpus=cpus,
        compute=ActorPoolStrategy(size=min(numbers, len(windows)), max_tasks_in_flight_per_actor=2),
    )
    batches: Any = decoded.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)
    for batch in batches:
        yield batch["picture"], batch["label"].astype(np.int64), batch["key"].tolist(), batch["rejected"].tolist()


class _WindowDecoder:
    """An actor that gives the rows of one window after another, decoded and augmented."""

    def __init__(
        self, rows: Rows, inputs: InputPipeline, augmenter: Augmenter | None, seed: int, epoch: int, rank: int
    ) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._rows, self._inputs, self._augmenter = rows, inputs, augmenter
        self._seed, self._epoch, self._rank = seed, epoch, rank

    def __call__(self, batch: dict[str, NDArray[Any]]) -> Iterator[dict[str, Any]]:
        number, skip, keep = (int(batch[name][0]) for name in ("number", "skip", "keep"))
        taken: list[tuple[dict[str, Any], int]] = []
        for shard, low, high in (map(int, part) for part in batch["parts"][0]):
            mine = self._rows.take(self._rows.shard == shard)
            mine = mine.take(np.arange(low, high))
            records = read_pictures(self._rows, shard, mine.row, self._inputs.columns)
            taken += zip((dict(record) for record in records), mine.labels.tolist(), strict=True)
        if number >= 0:
            order = generator("window", self._seed, self._epoch, self._rank, number).permutation(len(taken))
        else:
            order = np.arange(len(taken))
        rows = self._decoded([taken[position] for position in order[skip : skip + keep]])
        if rows:
            yield {
                "picture": stack([row[0] for row in rows]),
                "label": np.asarray([row[1] for row in rows]),
                "key": np.asarray([row[2] for row in rows], object),
                "rejected": np.asarray([row[3] for row in rows], object),
            }

    def _decoded(self, taken: Sequence[tuple[dict[str, Any], int]]) -> list[tuple[Any, int, str, str]]:
        """A picture that cannot be used is replaced by the one before it, so that each worker has as many; it is
        counted as rejected. A window of nothing else is an error."""
        rows: list[tuple[Any, int, str, str]] = []
        waiting: list[str] = []
        for record, label in taken:
            others = {name: value for name, value in record.items() if name != "bytes"}
            try:
                pixels = self._inputs.before_fit(record["bytes"], **others)
                if self._augmenter is not None:
                    pixels = self._augmenter.apply(pixels, self._epoch, record["key"])
                rows.append((self._inputs.fitted(pixels), label, record["key"], ""))
            except BadPicture as bad:
                if rows:
                    rows.append((*rows[-1][:3], bad.reason))
                else:
                    waiting.append(bad.reason)
        if not rows and waiting:
            raise StriateError(f"no picture of a whole window can be used: {Counter(waiting)}")
        return [(*rows[0][:3], reason) for reason in waiting] + rows
