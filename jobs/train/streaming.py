"""Training pictures streamed through Ray Data: one pipeline for each worker, started once for the whole training.

When a worker starts, everything that it will see is known: the rest of the current epoch, the validation pictures, the
next epoch and so on. This sequence goes through one Ray Data pipeline, in order: a reader reads the shards window by
window and shuffles each window, decoders decode small chunks of windows of any shard, and the worker takes the results.
So the pipeline never runs empty: while an epoch ends and the worker validates, the next pictures are decoded until the
pipeline's share of memory is full. The order depends only on the seed, the epoch and the number of workers.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray import ObjectRef
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from library.errors import StriateError
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.training.augmenting.choice import AugmentPlace, batch_drawer
from library.training.augmenting.drawing import BatchDrawer
from library.training.augmenting.operations import RaggedPictures
from library.training.batches import Batch, UnusablePictures
from library.training.rows import Part, Rows, read_part
from library.training.sampling import Group, WorkerShare, stored_order_groups
from library.training.stream_decoding import (
    ChunkDecoder,
    DecodedChunk,
    WindowReader,
    cut_table,
    rebatch,
)

# The size of a chunk, encoded or decoded: some tenths of a second of work, as Ray Data needs milliseconds for a task.
_CHUNK_BYTES = 16 * 2**20
# The same of pictures that the device augments, which are not in the model's size yet. A fifth below `MAX_CHUNK_BYTES`,
# so that few chunks are divided, although their pictures differ in size.
_UNDONE_CHUNK_BYTES = 40 * 2**20
_CHUNK_ROWS = 512
_MIN_CHUNK_ROWS = 32
# Decoded chunks that may wait, for each decoder, and the minimum in all.
_CHUNKS_AHEAD = 4
_MIN_AHEAD_BYTES = 256 * 2**20
# Reading is divided into at most this many tasks, because each costs Ray Data time.
_MAX_TASKS = 4096
#: The fields of pictures that have yet to be augmented, beside their samples.
_UNDONE = ("starts", "shapes", "whole")
_STAGE, _ERROR = ("training", "epoch"), "error"


@dataclass(frozen=True)
class Stage:
    """A stage of a worker's stream: the rest of an epoch, or the validation pictures.

    Attributes:
        training: whether it is an epoch; else validation.
        epoch: from 0.
        first_step: first step in the epoch.
        last_step: last step in the epoch, exclusive.
    """

    training: bool
    epoch: int
    first_step: int
    last_step: int


def remaining_stages(steps_per_epoch: int, epoch: int, first_step: int, steps: int, *, validated: bool) -> list[Stage]:
    """Returns the remaining stages of a training.

    Args:
        steps_per_epoch: batches of an epoch.
        epoch: the current epoch, from 0.
        first_step: the next step in it.
        steps: remaining steps of the training.
        validated: whether there are validation pictures.
    """
    stages: list[Stage] = []
    while steps > 0:
        last_step = min(steps_per_epoch, first_step + steps)
        steps -= last_step - first_step
        stages.append(Stage(True, epoch, first_step, last_step))
        if validated:
            stages.append(Stage(False, epoch, 0, 0))
        epoch, first_step = epoch + 1, 0
    return stages


@dataclass(frozen=True)
class StreamSource:
    """The parts of a worker's stream. It is sent to the stream's reader and decoders, so it holds no keys or labels.

    Attributes:
        share: the worker's share of the training rows.
        val: validation rows; None for no validation.
        inputs: the model's input pipeline.
        augmenter: augments training pictures; None for no augmentation.
        seed: the recipe's seed.
        train_tables: each training shard's rows in Ray's object store; empty if shards are read.
        val_tables: the same for validation.
        augmentation: where training pictures are augmented; if on the device, decoders leave them as they are.
        decoded_bytes: mean size of a training picture before it is augmented.
    """

    share: WorkerShare
    val: Rows | None
    inputs: InputPipeline
    augmenter: Augmenter | None
    seed: int
    train_tables: Sequence[ObjectRef[pa.Table] | None] = ()
    val_tables: Sequence[ObjectRef[pa.Table] | None] = ()
    augmentation: AugmentPlace | None = None
    decoded_bytes: float = 0.0

    def groups(self, stage: Stage) -> list[Group]:
        """Returns the row groups that are read in a stage."""
        if stage.training:
            return self.share.groups(self.seed, stage.epoch, stage.first_step, stage.last_step)
        assert self.val is not None
        return stored_order_groups(self.val, self.share.rank, self.share.world_size)

    @property
    def drawer(self) -> BatchDrawer | None:
        """Draws for the device; None where pictures are augmented one by one."""
        return batch_drawer(self.augmenter, self.inputs, self.augmentation)

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk: an even part of this worker's batch, or a few small batches."""
        local = self.share.local
        largest = max(float(np.prod(self.inputs.size)) * self.inputs.channels, self.share.rows.picture_bytes)
        most = min(_CHUNK_ROWS, int(_CHUNK_BYTES / largest))
        if self.drawer is not None:
            most = min(most, int(_UNDONE_CHUNK_BYTES / max(self.decoded_bytes, 1.0)))
        most = max(1, most)
        if local > most:
            return -(-local // -(-local // most))
        return local * max(1, min(_MIN_CHUNK_ROWS, most) // local)


class StreamLoader:
    """A `BatchLoader` that streams batches from shards.

    Args:
        source: the stream's parts.
        decoders: number of this worker's decoders.
        decoder_cpus: logical CPUs of each decoder.
    """

    def __init__(self, source: StreamSource, *, decoders: int, decoder_cpus: float) -> None:
        self._source, self._decoders, self._decoder_cpus = source, decoders, decoder_cpus
        self._stages: Iterator[Stage] = iter(())
        self._chunks: Iterator[DecodedChunk] = iter(())
        self.steps_per_epoch = source.share.steps
        self.left_out = 0
        self.augmentation = source.augmentation
        self.unusable = tuple(UnusablePictures(rows) for rows in (source.share.rows, source.val) if rows is not None)

    def start(self, epoch: int, first_step: int, steps: int) -> None:
        """Starts the pipeline for all remaining stages of the training."""
        validated = self._source.val is not None
        remaining = remaining_stages(self.steps_per_epoch, epoch, first_step, steps, validated=validated)
        self._stages = iter(remaining)
        self._chunks = _stream(self._source, remaining, self._decoders, self._decoder_cpus)

    def training(self) -> Iterator[Batch]:
        """Yields this worker's part of each remaining batch of the current epoch."""
        stage, share, unusable = next(self._stages), self._source.share, self.unusable[0]
        unusable.clear()
        drawer, epoch = self._source.drawer, stage.epoch
        total = (stage.last_step - stage.first_step) * share.local
        finish = functools.partial(_finish, drawer, epoch)
        for part in rebatch(self._chunks, share.rows, share.local, total, finish):
            unusable.add(part.replaced, part.rejected)
            yield part.to_batch(share.batch_size, drawer, epoch)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """Yields this worker's part of the validation pictures; together the workers see each picture once."""
        if self._source.val is None:
            return
        stage, unusable = next(self._stages), self.unusable[1]
        unusable.clear()
        rows = sum(group.keep for group in self._source.groups(stage))
        for part in rebatch(self._chunks, self._source.val, batch_size, rows):
            unusable.add(part.replaced, part.rejected)
            # Stand-ins keep the workers' batches equal in training; metrics must not count them.
            batch = part.without_stand_ins()
            if len(batch.labels):
                yield batch


def _finish(drawer: BatchDrawer | None, epoch: int, chunk: DecodedChunk) -> NDArray[Any]:
    """Augments the pictures of a chunk in this process."""
    from library.training.augmenting.execution import augmented_arrays  # imports torch, which decoders do without

    assert drawer is not None
    assert isinstance(chunk.pictures, RaggedPictures)
    return augmented_arrays(drawer.undone(chunk.pictures, epoch, chunk.keys))


def _stream(
    source: StreamSource, remaining: Sequence[Stage], decoders: int, decoder_cpus: float
) -> Iterator[DecodedChunk]:
    units = [(number, group) for number, stage in enumerate(remaining) for group in range(len(source.groups(stage)))]
    each = -(-len(units) // _MAX_TASKS)
    tasks = [{"units": units[first : first + each]} for first in range(0, len(units), each)]
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block is a row, and a row is a chunk
    context.execution_options.preserve_order = True
    chunk_bytes = _CHUNK_BYTES if source.drawer is None else _UNDONE_CHUNK_BYTES
    ahead = max(_MIN_AHEAD_BYTES, decoders * _CHUNKS_AHEAD * chunk_bytes)
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # A small dataset has fewer reading tasks than there are decoders; their chunks suffice.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # torch only reads it
    with DataContext.current(context):
        chunks = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            _Reader,
            fn_constructor_args=(source, remaining),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0,  # it mostly waits for the disk or the object store, and all CPUs may be taken
            compute=ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=2),
        )
        decoded = chunks.map_batches(
            _Decoder,
            fn_constructor_args=(source.share.rows.classes, source.inputs, source.augmenter, source.augmentation),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=decoder_cpus,
            # While a decoder decodes one chunk, one is put into Ray's object store and two wait.
            compute=ActorPoolStrategy(size=decoders, max_tasks_in_flight_per_actor=4, max_concurrent_calls_per_actor=2),
        )
        decoded.set_name("striate train")
        blocks: Any = decoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    return map(_unpack, blocks)


class _Reader:
    """An actor of Ray Data that reads windows and yields chunks of them, each packed into one row."""

    def __init__(self, source: StreamSource, remaining: Sequence[Stage]) -> None:
        self._source, self._remaining = source, remaining
        self._train = self._windows(source.share.rows, source.train_tables)
        self._val = None if source.val is None else self._windows(source.val, source.val_tables)
        self._groups = functools.lru_cache(2)(source.groups)

    def _windows(self, rows: Rows, tables: Sequence[ObjectRef[pa.Table] | None]) -> WindowReader:
        source = self._source
        read = functools.partial(_slice_table, tables) if tables else functools.partial(_read_shard, source, rows)
        return WindowReader(rows, read, source.seed, source.share.rank)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for number, units in itertools.groupby(batch["units"][0].as_py(), key=lambda unit: unit[0]):
            stage = self._remaining[number]
            reader = self._train if stage.training else self._val
            assert reader is not None
            groups = self._groups(stage)
            try:
                for table in reader.windows((groups[group] for _, group in units), stage.epoch):
                    for piece in cut_table(table, self._source.chunk_rows):
                        lists = {name: _as_list(piece[name]) for name in piece.column_names}
                        yield pa.table({"training": [stage.training], "epoch": [stage.epoch], **lists})
            except StriateError as error:
                yield _error_row(error)
                return


def _read_shard(source: StreamSource, rows: Rows, part: Part) -> pa.Table:
    return read_part(rows, part, source.inputs.columns)


def _slice_table(tables: Sequence[ObjectRef[pa.Table] | None], part: Part) -> pa.Table:
    shard, low, high = part
    ref = tables[shard]
    assert ref is not None
    table = ray.get(ref)
    return table.slice(low, high - low)


class _Decoder:
    """An actor of Ray Data that decodes one packed chunk, and yields it in as many as its size asks for."""

    def __init__(
        self,
        classes: Sequence[str],
        inputs: InputPipeline,
        augmenter: Augmenter | None,
        place: AugmentPlace | None,
    ) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._turn = threading.Lock()  # two calls run at once, of which one decodes while the other one is stored
        self._train = ChunkDecoder(classes, inputs, augmenter, place)
        self._val = ChunkDecoder(classes, inputs, None)

    def __call__(self, row: pa.Table) -> Iterator[pa.Table]:
        if _ERROR in row.column_names:
            yield row
            return
        names = [name for name in row.column_names if name not in _STAGE]
        records = pa.table({name: row[name].chunk(0).values for name in names}).to_pylist()
        decoder = self._train if row["training"][0].as_py() else self._val
        chunks = map(_pack, decoder.decode(records, row["epoch"][0].as_py()))
        try:
            while True:
                with self._turn:
                    packed = next(chunks, None)
                if packed is None:
                    return
                yield packed
        except StriateError as error:  # a step's own code
            yield _error_row(error)


def _error_row(error: StriateError) -> pa.Table:
    """Returns an error as a row, because Ray Data would hide an exception's message among many lines."""
    return pa.table({_ERROR: [str(error)]})


def _as_list(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one list value."""
    values = column.combine_chunks()
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _pack(decoded: DecodedChunk) -> pa.Table:
    """Packs a chunk into one row, without copying its pixels."""
    pictures = decoded.pictures
    undone = pictures.cut() if isinstance(pictures, RaggedPictures) else None
    samples: NDArray[Any] = pictures.cut().samples if isinstance(pictures, RaggedPictures) else pictures
    offsets = pa.py_buffer(np.asarray([0, samples.nbytes], np.int64))
    pixels = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(samples)])
    return pa.table(
        {
            "pixels": pixels,
            "dtype": [samples.dtype.str],
            "shape": [list(samples.shape)],
            **{f"undone_{name}": [getattr(undone, name).reshape(-1) if undone else None] for name in _UNDONE},
            "labels": [decoded.labels],
            "keys": [list(decoded.keys)],
            "rejected": [list(decoded.rejected)],
            "replaced": [decoded.replaced],
        }
    )


def _unpack(row: pa.Table) -> DecodedChunk:
    """Unpacks a chunk; its arrays lie in Ray's object store and are read-only.

    Raises:
        StriateError: the error of the reader or decoder, if the row holds one.
    """
    if _ERROR in row.column_names:
        raise StriateError(row[_ERROR][0].as_py())
    pixels = row["pixels"].chunk(0)[0].as_buffer()
    pictures: Any = np.frombuffer(pixels, row["dtype"][0].as_py()).reshape(row["shape"][0].as_py())
    labels, replaced = (row[name].chunk(0).values.to_numpy() for name in ("labels", "replaced"))
    if row["undone_starts"][0].is_valid:
        starts, *shapes = (row[f"undone_{name}"].chunk(0).values.to_numpy() for name in _UNDONE)
        pictures = RaggedPictures(pictures, starts, *(each.reshape(-1, 3) for each in shapes))
    return DecodedChunk(pictures, labels, row["keys"][0].as_py(), row["rejected"][0].as_py(), replaced)
