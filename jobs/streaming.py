"""Training pictures streamed through Ray Data: read, decoded and augmented beside the workers, epoch by epoch.

An epoch takes the shards in a new order. Their rows, one shard after the other, are cut into a part for each worker,
as large as its share of every batch; each worker reads its part in windows, pieces of a few shards at a time, and
shuffles inside each window. So a shard is read by one worker (two, where a cut falls into it), memory is bounded by the
window, and the order hangs on the seed, the epoch and the number of workers alone.
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
from library.inputs import InputPipeline
from library.training.batch import Batch
from library.training.rows import Rows
from library.training.stream_decoding import WindowDecoder
from library.training.windows import Share, Window, shard_counts, window_rows, windows_of

# What Ray Data passes on at once; its own 128 MiB would be held for each decoder.
_BLOCK_BYTES = 16 * 2**20


class StreamFeed:
    """Batches streamed from shards; arguments as `ResidentFeed`.

    Args:
        decoders: actors of this worker.
        decoder_cpus: logical CPUs of each.

    Attributes:
        rows: of the dataset.
        rejected: pictures that could not be used, by reason.
        spoiled: of each class, how many in the epoch under way.
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
        self.rows, self._inputs, self._augmenter, self._seed = rows, inputs, augmenter, seed
        self._share = Share(rows, min(batch_size, len(rows)), rank, world_size)
        self._decoders = (decoders, decoder_cpus)
        self.steps_per_epoch = self._share.steps
        self.rejected: Counter[str] = Counter()
        self.spoiled = np.zeros(len(rows.classes), np.int64)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This worker's part of each batch of an epoch, from `first_step` on."""
        share = self._share
        windows = share.windows(self._seed, epoch, first_step)
        decoder = (self.rows, self._inputs, self._augmenter, self._seed, epoch, share.rank)
        self.spoiled[:] = 0
        for block in _streamed(decoder, windows, share.local, self._decoders):
            self.rejected.update(reason for reason in block["rejected"].tolist() if reason)
            self.spoiled += _lost(block, self.rows)
            yield Batch(block["picture"], block["label"], block["key"].tolist(), share.batch_size)


class StreamScoring:
    """This worker's part of the validation pictures; together the workers see each once.

    Args:
        decoders: actors of this worker, and logical CPUs of each.

    Attributes:
        rows: of the dataset.
        spoiled: of each class, how many pictures could not be used the last time.
        rejected: those pictures by reason.
    """

    def __init__(
        self, rows: Rows, inputs: InputPipeline, *, rank: int, world_size: int, decoders: tuple[int, float]
    ) -> None:
        self.rows, self._decoders = rows, decoders
        self._decoder = (rows, inputs, None, 0, 0, rank)
        first, last = len(rows) * rank // world_size, len(rows) * (rank + 1) // world_size
        counts = shard_counts(rows)
        self._windows = windows_of(counts, range(len(counts)), first, last, shuffled=False, max_rows=window_rows(rows))
        self.spoiled = np.zeros(len(rows.classes), np.int64)
        self.rejected: Counter[str] = Counter()

    def __call__(self, batch_size: int) -> Iterator[Batch]:
        self.spoiled[:] = 0
        self.rejected.clear()
        for block in _streamed(self._decoder, self._windows, batch_size, self._decoders):
            self.spoiled += _lost(block, self.rows)
            self.rejected.update(reason for reason in block["rejected"].tolist() if reason)
            # Stand-ins keep the workers in step while they learn; a measure must not count them.
            good = block["lost"] < 0
            if good.any():
                yield Batch(block["picture"][good], block["label"][good], block["key"][good].tolist(), int(good.sum()))


def _lost(block: dict[str, NDArray[Any]], rows: Rows) -> NDArray[np.int64]:
    lost = block["lost"]
    return np.bincount(lost[lost >= 0], minlength=len(rows.classes)).astype(np.int64)


def _streamed(
    decoder: tuple[Any, ...], windows: Sequence[Window], batch_size: int, decoders: tuple[int, float]
) -> Iterator[dict[str, NDArray[Any]]]:
    if not windows:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = _BLOCK_BYTES
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers, cpus = decoders
    pictures = ray.data.from_items([dataclasses.asdict(window) for window in windows], override_num_blocks=len(windows))
    decoded = pictures.map_batches(
        _StreamDecoder,
        fn_constructor_args=decoder,
        batch_size=1,
        batch_format="numpy",
        num_cpus=cpus,
        compute=ActorPoolStrategy(size=min(numbers, len(windows)), max_tasks_in_flight_per_actor=2),
    )
    batches: Any = decoded.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)
    yield from batches


class _StreamDecoder:
    """An actor of Ray Data around a `WindowDecoder`."""

    def __init__(self, *arguments: Any) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._decoder = WindowDecoder(*arguments)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> Iterator[dict[str, Any]]:
        number, skip, keep = (int(batch[name][0]) for name in ("number", "skip", "keep"))
        parts = tuple((int(shard), int(low), int(high)) for shard, low, high in batch["parts"][0])
        yield from self._decoder.blocks(Window(number, parts, skip, keep))
