"""Batches for training workers: out of shared memory where the pictures fit, else streamed through Ray Data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import ray

from jobs.feed.streaming import Source, StreamFeed
from jobs.train.loop import TrainTask
from library.errors import StriateError
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.resident import Resident, ResidentFeed
from library.training.stream_decoding import Unusable
from library.training.training_batch import Batch
from library.training.windows import Share


class Feed(Protocol):
    """What one worker learns from and validates with.

    It is started once. Then the rest of the epoch under way is taken, then the validation pictures, and so on in turn;
    while one is taken, the next one is prepared.

    Attributes:
        steps_per_epoch: batches of an epoch.
        rejected: training pictures that could not be used, by reason.
        unusable: pictures that could not be used in the epoch under way, by dataset; empty where that was known before.
    """

    steps_per_epoch: int
    rejected: Counter[str]

    @property
    def unusable(self) -> Sequence[Unusable]: ...

    def start(self, epoch: int, first_step: int, steps: int) -> None:
        """Start at a step of an epoch, for `steps` steps in all."""
        ...

    def training(self) -> Iterator[Batch]:
        """This worker's part of each batch that is left of the epoch under way."""
        ...

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """Yields this worker's part of the validation pictures in batches of `batch_size` at most."""
        ...


def feed_of(refs: dict[str, Any], task: TrainTask, recipe: Recipe, batch_size: int, rank: int, world_size: int) -> Feed:
    """The feed of one worker.

    Args:
        refs: of the pictures of `train` and `val` in Ray's object store: each a `Resident`; or `Rows` to be
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
    if isinstance(train, Resident):
        return ResidentFeed(
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
    share = Share(train, smallest, rank, world_size)
    source = Source(share, val, inputs, augmenter, recipe.seed, refs["train"][1:], refs.get("val", ())[1:])
    return StreamFeed(source, decoders=task.decoders, decoder_cpus=task.decoder_cpus)
