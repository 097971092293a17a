"""Training pictures streamed through Ray Data: one pipeline a worker, started once for the whole training.

What a worker is going to see is known when it starts: the rest of the epoch under way, the validation pictures, the
next epoch and so on. That sequence goes through one Ray Data pipeline, in order: a reader reads the shards window by
window and shuffles inside each, decoders take small chunks of a window, whatever shard they are from, and the worker
takes what is decoded. So the pipeline is never empty: while one epoch ends and while the worker validates, what comes
next is decoded until memory's share is full. The order depends on the seed, the epoch and the number of workers alone.
"""

from __future__ import annotations

import functools
import itertools
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from library.errors import StriateError
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
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

# What is decoded by one task, by its size before or after: some tenths of a second of work, where Ray Data takes
# milliseconds for a task.
_CHUNK_BYTES = 16 * 2**20
_CHUNK_ROWS = 512
_LEAST_CHUNK_ROWS = 32
# Chunks that wait decoded, for each decoder, and at least in all.
_CHUNKS_AHEAD = 4
_MIN_AHEAD_BYTES = 256 * 2**20
# What the pipeline is given to read. More tasks than this would cost Ray Data more than they are worth.
_MAX_TASKS = 4096
_STAGE, _PROBLEM = ("training", "epoch"), "problem"


@dataclass(frozen=True)
class Stage:
    """A part of what a worker sees: the rest of an epoch, or the validation pictures.

    Attributes:
        training: or validation.
        epoch: from 0.
        first_step: of the epoch.
        last_step: of it, exclusive.
    """

    training: bool
    epoch: int
    first_step: int
    last_step: int


def stages(steps_per_epoch: int, epoch: int, first_step: int, steps: int, *, validated: bool) -> list[Stage]:
    """All that is left of a training.

    Args:
        steps_per_epoch: batches of an epoch.
        epoch: the one under way, from 0.
        first_step: of it.
        steps: left in all.
        validated: whether there are validation pictures.
    """
    found: list[Stage] = []
    while steps > 0:
        last_step = min(steps_per_epoch, first_step + steps)
        steps -= last_step - first_step
        found.append(Stage(True, epoch, first_step, last_step))
        if validated:
            found.append(Stage(False, epoch, 0, 0))
        epoch, first_step = epoch + 1, 0
    return found


@dataclass(frozen=True)
class Source:
    """The arguments of reader and decoders; they hold no key and no label.

    Attributes:
        share: of the training pictures.
        val: validation pictures, or None.
        inputs: what the model sees.
        augmenter: of the training pictures; None for none.
        seed: of the recipe.
        train_tables: of each shard what is stored, in Ray's object store; empty where shards are read.
        val_tables: the same of the validation pictures.
    """

    share: WorkerShare
    val: Rows | None
    inputs: InputPipeline
    augmenter: Augmenter | None
    seed: int
    train_tables: Sequence[Any] = ()
    val_tables: Sequence[Any] = ()

    def groups(self, stage: Stage) -> list[Group]:
        """What is read in a stage."""
        if stage.training:
            return self.share.groups(self.seed, stage.epoch, stage.first_step, stage.last_step)
        assert self.val is not None
        return stored_order_groups(self.val, self.share.rank, self.share.world_size)

    @property
    def chunk_rows(self) -> int:
        """Rows that are decoded at a time: an even part of this worker's batch, or some small batches whole."""
        local = self.share.local
        largest = max(float(np.prod(self.inputs.size)) * self.inputs.channels, self.share.rows.picture_bytes)
        most = max(1, min(_CHUNK_ROWS, int(_CHUNK_BYTES / largest)))
        if local > most:
            return -(-local // -(-local // most))
        return local * max(1, min(_LEAST_CHUNK_ROWS, most) // local)


class StreamFeed:
    """Batches streamed from shards.

    Args:
        source: what is streamed.
        decoders: actors of this worker.
        decoder_cpus: logical CPUs of each.

    Attributes:
        steps_per_epoch: batches of an epoch.
        rejected: training pictures that could not be used, by reason.
        unusable: of the epoch under way: training pictures, and validation pictures where there are any.
    """

    def __init__(self, source: Source, *, decoders: int, decoder_cpus: float) -> None:
        self._source, self._decoders, self._decoder_cpus = source, decoders, decoder_cpus
        self._stages: Iterator[Stage] = iter(())
        self._parts: Iterator[DecodedChunk] = iter(())
        self.steps_per_epoch = source.share.steps
        self.rejected: Counter[str] = Counter()
        self.unusable = tuple(UnusablePictures(rows) for rows in (source.share.rows, source.val) if rows is not None)

    def start(self, epoch: int, first_step: int, steps: int) -> None:
        """Start the pipeline, for all that is left of the training."""
        remaining = stages(self.steps_per_epoch, epoch, first_step, steps, validated=self._source.val is not None)
        self._stages = iter(remaining)
        self._parts = _streamed(self._source, remaining, self._decoders, self._decoder_cpus)

    def training(self) -> Iterator[Batch]:
        """This worker's part of each batch that is left of the epoch under way."""
        stage, share, unusable = next(self._stages), self._source.share, self.unusable[0]
        unusable.clear()
        for part in rebatch(self._parts, share.rows, share.local, (stage.last_step - stage.first_step) * share.local):
            unusable.add(part.replaced, part.rejected)
            self.rejected.update(reason for reason in part.rejected if reason)
            yield part.to_batch(share.batch_size)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """This worker's part of the validation pictures; together the workers see each once."""
        if self._source.val is None:
            return
        stage, unusable = next(self._stages), self.unusable[1]
        unusable.clear()
        rows = sum(group.keep for group in self._source.groups(stage))
        for part in rebatch(self._parts, self._source.val, batch_size, rows):
            unusable.add(part.replaced, part.rejected)
            # Stand-ins keep the workers in step while they learn; a measure must not count them.
            batch = part.without_stand_ins()
            if len(batch.labels):
                yield batch


def _streamed(source: Source, remaining: Sequence[Stage], decoders: int, decoder_cpus: float) -> Iterator[DecodedChunk]:
    units = [(number, group) for number, stage in enumerate(remaining) for group in range(len(source.groups(stage)))]
    each = -(-len(units) // _MAX_TASKS)
    tasks = [{"units": units[first : first + each]} for first in range(0, len(units), each)]
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block is a row, and a row is a chunk
    context.execution_options.preserve_order = True
    ahead = max(_MIN_AHEAD_BYTES, decoders * _CHUNKS_AHEAD * _CHUNK_BYTES)
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # A small dataset gives fewer tasks to read than there are decoders; their chunks are enough.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # torch only reads what is shared
    with DataContext.current(context):
        chunks = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            _Reader,
            fn_constructor_args=(source, remaining),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0,  # it mostly waits for the disk or the store, and there may be no CPU left
            compute=ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=2),
        )
        decoded = chunks.map_batches(
            _Decoder,
            fn_constructor_args=(source.share.rows.classes, source.inputs, source.augmenter),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=decoder_cpus,
            # A decoder decodes one chunk at a time; beside it one is put into Ray's object store, and two wait.
            compute=ActorPoolStrategy(size=decoders, max_tasks_in_flight_per_actor=4, max_concurrent_calls_per_actor=2),
        )
        decoded.set_name("striate train")
        blocks: Any = decoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    return map(_unpacked, blocks)


class _Reader:
    """An actor of Ray Data that reads windows and gives them in chunks, as one row each."""

    def __init__(self, source: Source, remaining: Sequence[Stage]) -> None:
        self._source, self._remaining = source, remaining
        self._train = self._windows(source.share.rows, source.train_tables)
        self._val = None if source.val is None else self._windows(source.val, source.val_tables)
        self._groups = functools.lru_cache(2)(source.groups)

    def _windows(self, rows: Rows, tables: Sequence[Any]) -> WindowReader:
        source = self._source
        read = functools.partial(_held_part, tables) if tables else functools.partial(_stored_part, source, rows)
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
                        lists = {name: _listed(piece[name]) for name in piece.column_names}
                        yield pa.table({"training": [stage.training], "epoch": [stage.epoch], **lists})
            except StriateError as error:
                yield _problem(error)
                return


def _stored_part(source: Source, rows: Rows, part: Part) -> pa.Table:
    return read_part(rows, part, source.inputs.columns)


def _held_part(tables: Sequence[Any], part: Part) -> pa.Table:
    shard, low, high = part
    table: Any = ray.get(tables[shard])
    return table.slice(low, high - low)


class _Decoder:
    """An actor of Ray Data around a `ChunkDecoder`; takes and gives one row."""

    def __init__(self, classes: Sequence[str], inputs: InputPipeline, augmenter: Augmenter | None) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._train, self._val = (ChunkDecoder(classes, inputs, each) for each in (augmenter, None))

    def __call__(self, row: pa.Table) -> pa.Table:
        if _PROBLEM in row.column_names:
            return row
        names = [name for name in row.column_names if name not in _STAGE]
        records = pa.table({name: row[name].chunk(0).values for name in names}).to_pylist()
        decoder = self._train if row["training"][0].as_py() else self._val
        try:
            return _packed(decoder.decode(records, row["epoch"][0].as_py()))
        except StriateError as error:  # a step's own code
            return _problem(error)


def _problem(error: StriateError) -> pa.Table:
    """As a row: an exception would come out of Ray Data wrapped, its sentence among many lines."""
    return pa.table({_PROBLEM: [str(error)]})


def _listed(column: pa.ChunkedArray) -> pa.Array:
    """A column as one list."""
    values = column.combine_chunks()
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _packed(decoded: DecodedChunk) -> pa.Table:
    """As one row; the pixels are not copied here."""
    pictures = decoded.pictures
    offsets = pa.py_buffer(np.asarray([0, pictures.nbytes], np.int64))
    pixels = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(pictures)])
    return pa.table(
        {
            "pixels": pixels,
            "dtype": [pictures.dtype.str],
            "shape": [list(pictures.shape)],
            "labels": [decoded.labels],
            "keys": [list(decoded.keys)],
            "rejected": [list(decoded.rejected)],
            "lost": [decoded.replaced],
        }
    )


def _unpacked(row: pa.Table) -> DecodedChunk:
    """As arrays that lie in Ray's object store, which is read only.

    Raises:
        StriateError: what reader or decoder could not go on with.
    """
    if _PROBLEM in row.column_names:
        raise StriateError(row[_PROBLEM][0].as_py())
    pixels = row["pixels"].chunk(0)[0].as_buffer()
    pictures = np.frombuffer(pixels, row["dtype"][0].as_py()).reshape(row["shape"][0].as_py())
    labels, lost = (row[name].chunk(0).values.to_numpy() for name in ("labels", "lost"))
    return DecodedChunk(pictures, labels, row["keys"][0].as_py(), row["rejected"][0].as_py(), lost)
