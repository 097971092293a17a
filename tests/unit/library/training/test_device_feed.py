"""Batches on their way to a device: the same code that copies to a GPU, on a CPU."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from library.errors import StriateError
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline
from library.training.batches import Batch
from library.training.device_feed import DeviceBatch, DeviceFeed, DevicePictures, moved, placing
from library.training.in_memory import MemoryLoader, PackedPictures

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)


def batches(count: int) -> list[Batch]:
    return [
        Batch(RANDOM.integers(0, 256, (3, 4, 5, 2), np.uint8), RANDOM.integers(0, 9, 3), ["a", "b", f"c{number}"], 6)
        for number in range(count)
    ]


def assert_same(fed: DeviceBatch, given: Batch) -> None:
    assert np.array_equal(fed.pictures.numpy(), given.pictures)
    assert np.array_equal(fed.labels.numpy(), given.labels)
    assert (list(fed.keys), fed.size, fed.pictures.dtype) == (list(given.keys), given.size, torch.uint8)


@pytest.mark.parametrize("ahead", [None, False, True])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_batches_come_whole_and_in_order(ahead: bool | None, count: int) -> None:
    given = batches(count)
    fed = list(DeviceFeed(CPU, ahead=ahead)(iter(given)))
    assert len(fed) == count
    for one, other in zip(fed, given, strict=True):
        assert_same(one, other)


def test_on_a_cpu_nothing_is_copied_and_no_thread_is_started() -> None:
    (given,) = batches(1)
    (fed,) = DeviceFeed(CPU)(iter([given]))
    assert isinstance(given.pictures, np.ndarray)
    assert np.shares_memory(fed.pictures.numpy(), given.pictures)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("device-feed")]


@pytest.mark.parametrize("ahead", [False, True])
def test_an_error_of_the_loader_comes_in_place_of_its_batch(ahead: bool) -> None:
    given = batches(2)

    def failing() -> Iterator[Batch]:
        yield from given
        raise StriateError("the third batch")

    seen: list[DeviceBatch] = []
    with pytest.raises(StriateError, match="the third batch"):
        seen.extend(each for each in DeviceFeed(CPU, ahead=ahead)(failing()) if seen.append(each))
    assert len(seen) == 2


def test_the_next_batch_is_taken_while_one_is_used() -> None:
    taken = [threading.Event() for _ in range(3)]

    def loader() -> Iterator[Batch]:
        for event, batch in zip(taken, batches(3), strict=True):
            event.set()
            yield batch

    fed = DeviceFeed(CPU, ahead=True)(loader())
    next(fed)
    assert taken[1].wait(60)
    assert not taken[2].is_set(), "only one batch is held ahead"
    assert len(list(fed)) == 2


@pytest.mark.parametrize("ahead", [False, True])
def test_an_early_stop_ends_the_loader_and_the_thread(ahead: bool) -> None:
    closed = threading.Event()

    def loader() -> Iterator[Batch]:
        try:
            yield from batches(9)
        finally:
            closed.set()

    source = loader()
    fed = DeviceFeed(CPU, ahead=ahead)(source)
    next(fed)
    fed.close()  # pyright: ignore[reportAttributeAccessIssue] -- as the end of a `for` loop does
    source.close()  # without a thread the loader is ended by its owner
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("device-feed")]


@pytest.mark.parametrize("augmented", [False, True])
def test_a_memory_loader_gives_the_same_epochs_through_a_feed(augmented: bool) -> None:
    def epochs(*, feed: bool, resident: bool) -> list[tuple[list[str], bytes]]:
        pictures = [np.full((4, 4, 1), number, np.uint8) for number in range(22)]
        keys = [str(number) for number in range(22)]
        data = PackedPictures.pack(pictures, [0, 1] * 11, keys, Counter())
        loader = MemoryLoader(
            data,
            data,
            InputPipeline(Pipeline(), Pipeline(), (4, 4), 1),
            None,
            batch_size=4,
            seed=3,
            balanced=augmented,
            rank=0,
            world_size=1,
            place=(lambda array: DevicePictures(array, CPU)) if resident else (lambda array: array),
        )
        loader.start(0, 2, 10)  # from the middle of an epoch to the middle of another
        through = DeviceFeed(CPU, ahead=feed)
        seen: list[tuple[list[str], bytes]] = []
        for _ in range(3):
            for stage in (loader.training(), loader.validation(5)):
                seen += [(list(batch.keys), batch.pictures.numpy().tobytes()) for batch in through(stage)]
        return seen

    plain = epochs(feed=False, resident=False)
    assert len(plain) == 10 + 3 * 5
    assert epochs(feed=True, resident=False) == plain
    assert epochs(feed=True, resident=True) == plain


def test_pictures_stay_where_they_are_on_a_cpu() -> None:
    (given,) = batches(1)
    assert isinstance(given.pictures, np.ndarray)
    assert placing(CPU, lambda: pytest.fail("nothing is measured"))(given.pictures) is given.pictures


def test_rows_of_device_pictures_are_those_of_the_array() -> None:
    array = RANDOM.integers(0, 65536, (9, 2, 3, 1), np.uint16)
    array.flags.writeable = False
    rows = np.array([8, 0, 3, 3])
    assert np.array_equal(DevicePictures(array, CPU)[rows].numpy(), array[rows])


def test_parts_of_a_batch_keep_the_size_of_the_whole() -> None:
    (given,) = batches(1)
    part = moved(given, CPU).part(slice(1, 3))
    assert (len(part.labels), list(part.keys), part.size) == (2, list(given.keys[1:]), 6)
