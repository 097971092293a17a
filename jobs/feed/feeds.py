"""Batches for training workers: out of shared memory where the pictures fit, else streamed through Ray Data."""

from __future__ import annotations

from typing import Any

import ray

from jobs.feed.streaming import Source, StreamFeed
from jobs.train.loop import TrainTask
from library.errors import StriateError
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.batches import BatchLoader
from library.training.in_memory import MemoryLoader, PackedPictures
from library.training.sampling import WorkerShare


def feed_of(
    refs: dict[str, Any], task: TrainTask, recipe: Recipe, batch_size: int, rank: int, world_size: int
) -> BatchLoader:
    """The feed of one worker.

    Args:
        refs: of the pictures of `train` and `val` in Ray's object store: each a `PackedPictures`; or `Rows` to be
            streamed, and after it a table of each shard where these are held there.
        task: its input pipeline, threads and decoders are read.
        recipe: `augment`, `sampling` and `seed` are read.
        batch_size: over all workers.
        rank: of this worker.
        world_size: workers in all.

    Raises:
        StriateError: when a batch has no picture for some worker.
    """
    inputs = InputPipeline.parse(task.steps_pipeline, task.fit, task.input_size, task.channels)
    augmented = recipe.augment is not None and not recipe.cache_features
    augmenter = Augmenter(Pipeline.parse(recipe.augment or ""), recipe.seed) if augmented else None
    train: Any = ray.get(refs["train"][0])
    val: Any = ray.get(refs["val"][0]) if refs.get("val") else None
    smallest = min(batch_size, len(train))
    if smallest < world_size:
        raise StriateError(f"a batch of {smallest} pictures has none for some of {world_size} workers; use fewer")
    if isinstance(train, PackedPictures):
        return MemoryLoader(
            train,
            val,
            inputs,
            augmenter,
            batch_size=batch_size,
            seed=recipe.seed,
            balanced=recipe.sampling == "balanced",
            rank=rank,
            world_size=world_size,
            threads=task.threads,
        )
    share = WorkerShare(train, smallest, rank, world_size)
    source = Source(share, val, inputs, augmenter, recipe.seed, refs["train"][1:], refs.get("val", ())[1:])
    return StreamFeed(source, decoders=task.decoders, decoder_cpus=task.decoder_cpus)
