"""Batches for training workers: out of shared memory where the pictures fit, else streamed through Ray Data."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ray

from jobs.streaming import StreamFeed, StreamScoring
from library.augmentation import Augmenter
from library.errors import StriateError
from library.inputs import InputPipeline
from library.pipeline import Pipeline
from library.recipe import Recipe
from library.training.batch import Batch
from library.training.resident import Resident, ResidentFeed, scoring_batches

#: Gives this worker's part of the validation pictures in batches of at most so many.
Scoring = Callable[[int], Iterator[Batch]]


class Feed(Protocol):
    """Training batches.

    Attributes:
        steps_per_epoch: batches of an epoch.
        rejected: pictures that could not be used, by reason.
    """

    steps_per_epoch: int
    rejected: Counter[str]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This worker's part of each batch of an epoch, from `first_step` on."""
        ...


def feeds_of(
    data: dict[str, Any], refs: dict[str, Any], task: Any, recipe: Recipe, batch_size: int, rank: int, world_size: int
) -> tuple[Feed, Scoring]:
    """The feeds of one worker.

    Args:
        data: `threads` (that augment) and `decoders` (of each worker, where it streams).
        refs: of the pictures of `train` and `val` in Ray's object store: each a `Resident`, or `Rows` to be streamed.
        task: a `TrainTask`; its input pipeline is read.
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
    smallest = min(batch_size, len(train))
    if smallest < world_size:
        raise StriateError(f"a batch of {smallest} pictures has none for some of {world_size} workers; use fewer")
    if isinstance(train, Resident):
        feed: Feed = ResidentFeed(
            train,
            inputs,
            augmenter,
            batch_size=batch_size,
            seed=recipe.seed,
            balanced=recipe.sampling == "balanced",
            rank=rank,
            world_size=world_size,
            threads=data["threads"],
        )
    else:
        feed = StreamFeed(
            train,
            inputs,
            augmenter,
            batch_size=batch_size,
            seed=recipe.seed,
            rank=rank,
            world_size=world_size,
            decoders=data["decoders"],
            decoder_cpus=data["decoder_cpus"],
        )
    val: Any = ray.get(refs["val"][0]) if refs.get("val") else None
    if val is None:
        return feed, _nothing
    if isinstance(val, Resident):
        return feed, functools.partial(_resident_scoring, val, rank, world_size)
    decoders = (data["decoders"], data["decoder_cpus"])
    return feed, StreamScoring(val, inputs, rank=rank, world_size=world_size, decoders=decoders)


def _nothing(batch_size: int) -> Iterator[Batch]:
    return iter(())


def _resident_scoring(val: Resident, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
    return scoring_batches(val, batch_size, rank, world_size)
