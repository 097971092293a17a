"""Batches out of memory: the same for any number of workers, resumed anywhere, augmented ahead."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.steps.base import Kind
from library.training.resident import Resident, ResidentFeed

INPUTS = InputPipeline(Pipeline(), Pipeline(), (4, 4), 1)
PICTURES, BATCH = 40, 8
STEPS = PICTURES // BATCH
AUGMENTED = threading.Semaphore(0)


@dataclass(frozen=True)
class CountedTurn:
    """Turns a picture around, and counts it; not registered, for other tests look at all steps that are."""

    kind: ClassVar[Kind] = "augmentation"
    name: ClassVar[str] = "counted_turn"

    def columns(self) -> tuple[str, ...]:
        return ()

    def may_drop(self) -> bool:
        return False

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        AUGMENTED.release()
        return np.ascontiguousarray(pixels[::-1])


def feed(*, rank: int = 0, world_size: int = 1, augmented: bool = False) -> ResidentFeed:
    pictures = [np.full((4, 4, 1), number, np.uint8) for number in range(PICTURES)]
    data = Resident.of(pictures, [0, 1] * (PICTURES // 2), [str(number) for number in range(PICTURES)], Counter())
    augmenter = Augmenter(Pipeline((CountedTurn(),)), 0) if augmented else None
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 3, "balanced": False, "threads": 2}
    return ResidentFeed(data, data, INPUTS, augmenter, rank=rank, world_size=world_size, **options)


def keys(source: ResidentFeed) -> list[list[str]]:
    return [list(batch.keys) for batch in source.training()]


def test_every_epoch_has_each_picture_once_in_another_order() -> None:
    for augmented in (False, True):
        source = feed(augmented=augmented)
        source.start(0, 0, 2 * STEPS)
        first, second = keys(source), keys(source)
        assert first != second
        for found in (first, second):
            assert sorted(int(key) for batch in found for key in batch) == list(range(PICTURES))


def test_a_resumed_training_takes_the_batches_that_were_left() -> None:
    for augmented in (False, True):
        whole, resumed = feed(augmented=augmented), feed(augmented=augmented)
        whole.start(0, 0, 2 * STEPS)
        resumed.start(1, 2, STEPS - 2 - 1)
        assert keys(resumed) == (keys(whole), keys(whole))[1][2:-1]


def test_two_workers_take_the_halves_of_what_one_takes() -> None:
    one, *two = feed(), feed(rank=0, world_size=2), feed(rank=1, world_size=2)
    for source in (one, *two):
        source.start(0, 0, STEPS)
    assert [left + right for left, right in zip(*map(keys, two), strict=True)] == keys(one)
    parts = [list(batch.keys) for source in two for batch in source.validation(7)]
    assert [key for part in parts for key in part] == [str(number) for number in range(PICTURES)]


def test_the_next_epoch_is_augmented_while_this_one_ends() -> None:
    while AUGMENTED.acquire(blocking=False):
        pass
    source = feed(augmented=True)
    source.start(0, 0, 2 * STEPS)
    keys(source)
    # More than the epoch's own pictures, though no batch of the next one was asked for.
    assert all(AUGMENTED.acquire(timeout=60) for _ in range(PICTURES + BATCH))
