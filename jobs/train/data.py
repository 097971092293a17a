"""A training's pictures in Ray's object store: put there by the driver, and taken from there by each worker's loader.

The pictures are decoded, or features of a frozen backbone, or rows to be streamed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from cluster.connection.session import Session
from jobs.output import stderr
from jobs.train.decoder import Decoder, map_parts
from jobs.train.plan import TrainPlan
from jobs.train.run_folder import FEATURES
from jobs.train.streaming import StreamLoader, StreamSource
from jobs.train.worker_task import TrainTask
from library import storage
from library.bundle.description import weights_digest
from library.dataset.manifest import digest_of
from library.errors import StriateError, UsageError
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.steps.plugins import digests, recorded
from library.training.augmenting.choice import DeviceType, choose_place, training_augmenter
from library.training.batches import BatchLoader, PictureRows
from library.training.in_memory import MemoryLoader, PackedPictures, decode_rows
from library.training.rows import Part, Rows, read_part, rejected_text
from library.training.sampling import WorkerShare, small_parts

# The driver decodes up to this many bytes, for at most this long: starting actors for them would take as long.
_DRIVER_BYTES = 16 * 2**20
_DRIVER_S = 2.0


@dataclass(frozen=True)
class DatasetRefs:
    """References to one dataset's pictures.

    Attributes:
        pictures: the pictures or features, or the rows to be streamed.
        tables: for rows whose stored pictures are held in memory, a table for each shard, None for an unused shard;
            empty if workers read the shards.
    """

    pictures: ObjectRef[PackedPictures | Rows]
    tables: Sequence[ObjectRef[pa.Table] | None] = ()


@dataclass(frozen=True)
class TrainData:
    """References to a training's pictures.

    Attributes:
        train: training pictures.
        val: validation pictures; None for no validation.
    """

    train: DatasetRefs
    val: DatasetRefs | None


def put_data(plan: TrainPlan, session: Session) -> TrainData:
    """Puts a training's pictures into Ray's object store.

    Raises:
        StriateError: when no picture, or none of some class, can be used.
    """
    inputs = decoding_inputs(plan)
    train = _put_rows(plan, "train", plan.train, inputs, session)
    return TrainData(train, None if plan.val is None else _put_rows(plan, "val", plan.val, inputs, session))


def check_decoder(plan: TrainPlan, session: Session) -> None:
    """Checks that the recipe's `input.decode` is possible on this Ray.

    Raises:
        UsageError: there is no GPU, or this machine, if it is Ray's only one, lacks TorchCodec.
    """
    if plan.recipe.input.decode != "cuda":
        return
    if not session.gpus:
        raise UsageError(f"input.decode: cuda needs a GPU, and there is none: {session}; set input.decode: cpu")
    if session.address is None:
        from library.imaging import cuda_jpeg  # imports torch

        cuda_jpeg.check_installed()


def decoding_inputs(plan: TrainPlan) -> InputPipeline:
    """The model's input pipeline with the decoder that the recipe asks for."""
    if plan.recipe.input.decode != "cuda":
        return plan.inputs
    from library.imaging import cuda_jpeg  # imports torch

    return dataclasses.replace(plan.inputs, decode=cuda_jpeg.decode)


def make_loader(
    data: TrainData,
    task: TrainTask,
    recipe: Recipe,
    batch_size: int,
    rank: int,
    world_size: int,
    place: Callable[[NDArray[Any]], PictureRows] = lambda pictures: pictures,
    device: DeviceType = "cpu",
) -> BatchLoader:
    """Creates the loader of one worker.

    Args:
        data: the pictures in Ray's object store.
        task: input pipeline, threads and decoders are used.
        recipe: `augment`, `augment_on`, `sampling` and `seed` are used.
        batch_size: pictures of a batch over all workers.
        rank: this worker's rank.
        world_size: number of workers.
        place: moves decoded pictures of one shape to where batches are taken from; by default they stay in memory.
        device: type of the device that trains.

    Raises:
        StriateError: when a batch has fewer pictures than there are workers, or pictures cannot be augmented where the
            recipe says.
    """
    inputs = InputPipeline.parse(task.steps, task.fit, task.input_size, task.channels)
    augmenter = training_augmenter(recipe)
    train = ray.get(data.train.pictures)
    val = None if data.val is None else ray.get(data.val.pictures)
    size = min(batch_size, len(train))
    if size < world_size:
        raise StriateError(f"a batch of {size} pictures is too small for {world_size} workers; use fewer workers")
    chosen = choose_place(recipe, inputs, device, in_memory=isinstance(train, PackedPictures))
    if chosen is not None:
        dtype = train.flat.dtype if isinstance(train, PackedPictures) else np.dtype(task.decoded_dtype)
        chosen = chosen.for_samples(dtype)
    if isinstance(train, PackedPictures):
        assert not isinstance(val, Rows)
        return MemoryLoader(
            train,
            val,
            inputs,
            augmenter,
            augmentation=chosen,
            batch_size=batch_size,
            seed=recipe.seed,
            balanced=recipe.sampling == "balanced",
            rank=rank,
            world_size=world_size,
            threads=task.threads,
            place=place,
        )
    assert not isinstance(val, PackedPictures)
    share = WorkerShare(train, size, rank, world_size)
    val_tables = () if data.val is None else data.val.tables
    tables = data.train.tables, val_tables
    source = StreamSource(share, val, inputs, augmenter, recipe.seed, *tables, chosen, task.decoded_bytes)
    return StreamLoader(source, decoders=task.decoders, decoder_cpus=task.decoder_cpus)


def _put_rows(plan: TrainPlan, role: str, rows: Rows, inputs: InputPipeline, session: Session) -> DatasetRefs:
    if not plan.in_memory:
        ref: ObjectRef[PackedPictures | Rows] = ray.put(rows)
        return DatasetRefs(ref, _put_tables(ref, rows, plan.inputs) if _fits_encoded(rows, plan.recipe) else ())
    if plan.recipe.cache_features:
        pictures = _features(plan, role, rows, inputs, session)
    else:
        fitted = role == "val" or plan.recipe.augment is None
        pictures = decode_all(rows, inputs, session, fitted=fitted, on_gpus=plan.recipe.input.decode == "cuda")
    if rows.label_sets is None:  # a set of labels may be that of a single picture
        pictures.check_classes(rows.dataset, rows.classes)
    if pictures.rejected:
        total, reasons = pictures.rejected.total(), rejected_text(pictures.rejected)
        stderr.print(f"{rows.dataset}: {total:,} pictures cannot be used: {reasons}", markup=False)
    return DatasetRefs(ray.put(pictures))


def _fits_encoded(rows: Rows, recipe: Recipe) -> bool:
    """Whether stored pictures are fetched once and held in memory; files on a disk stay in the system's own cache."""
    most = recipe.data.max_resident_mb * 2**20
    return storage.is_remote(rows.dataset) and rows.picture_bytes * len(rows) <= most


def _put_tables(
    rows_ref: ObjectRef[PackedPictures | Rows], rows: Rows, inputs: InputPipeline
) -> Sequence[ObjectRef[pa.Table] | None]:
    """Reads each shard's rows as stored into the object store; returns references, None for an unused shard."""
    read: Any = ray.remote(num_returns=2)(_read_table)
    pairs = [
        read.remote(rows_ref, (shard, 0, count), inputs.columns) if count else (None, None)
        for shard, count in enumerate(rows.counts.tolist())
    ]
    # Waits until all is read, before decoders occupy the CPUs, and raises read errors here.
    ray.get([count for _, count in pairs if count is not None])
    return [table for table, _ in pairs]


def _read_table(rows: Rows, part: Part, columns: Sequence[str]) -> tuple[pa.Table, int]:
    table = read_part(rows, part, columns)
    return table, table.num_rows


def decode_all(rows: Rows, inputs: InputPipeline, session: Session, *, fitted: bool, on_gpus: bool) -> PackedPictures:
    """Decodes all rows: a few of them in the driver, the rest on Ray; all on Ray where that takes GPUs.

    Args:
        rows: the dataset's rows.
        inputs: the input pipeline.
        session: the connection to Ray.
        fitted: whether pictures are resized to the model's input.
        on_gpus: whether each actor takes a GPU.

    Raises:
        StriateError: no picture can be used.
    """
    workers = session.gpus if on_gpus else max(1, session.cpus)
    parts = small_parts(rows, workers)
    done: list[PackedPictures] = []
    in_driver = not on_gpus and rows.picture_bytes * len(rows) <= _DRIVER_BYTES
    end = time.monotonic() + _DRIVER_S * in_driver
    while len(done) < len(parts) and time.monotonic() < end:
        done.append(decode_rows(rows, parts[len(done)], inputs, fitted=fitted))
    if len(done) < len(parts):
        done += map_parts(Decoder, (rows, inputs, fitted), parts[len(done) :], workers, num_gpus=int(on_gpus))
    pictures = PackedPictures.concatenate(done)
    if not len(pictures):
        raise StriateError(f"no picture of {rows.dataset} can be used: {rejected_text(pictures.rejected)}")
    return pictures


def _features(plan: TrainPlan, role: str, rows: Rows, inputs: InputPipeline, session: Session) -> PackedPictures:
    """Returns the frozen backbone's features of the pictures; computed once and stored in the training's folder."""
    from jobs.train.features import cached_features  # imports timm, which other trainings import only in their workers

    recipe = plan.recipe
    copies = recipe.copies if role == "train" and recipe.augment is not None else None
    # Everything that decides the features; its digest names the file.
    identity = {
        "model": recipe.model,
        "weights": [recipe.weights, weights_digest(recipe.weights)],
        "precision": recipe.precision,
        "seed": recipe.seed,
        "dataset": plan.datasets,
        "fraction": recipe.data.val_fraction,
        "classes": rows.classes,
        "inputs": [str(inputs.steps), str(inputs.fit), inputs.size, recipe.input.decode == "cuda"],
        "augment": recipe.augment if copies else None,
        "copies": copies,
        **recorded(digests(plan.used_plugins)),
    }
    uri = storage.join(plan.out, FEATURES, f"{role}-{digest_of(identity)[:16]}.npz")
    return cached_features(uri, rows, inputs, plan.located, session, plan.used_plugins, copies=copies)
