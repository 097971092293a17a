"""Batches that are copied to a GPU in a stream of their own, one ahead of the step: none is used before it has come."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from library.training.batches import Batch
from library.training.device_feed import DeviceFeed, DevicePictures, placing
from tests.gpu.test_learning import LABELS, PICTURES, STEPS, batch, learner

pytestmark = pytest.mark.gpu

BATCHES = 40
SHAPE = (16, 64, 64, 3)


def batches() -> Iterator[Batch]:
    """Batches whose pictures all have the number of the batch as value; each array is dropped when it is taken."""
    for number in range(BATCHES):
        labels = np.full(SHAPE[0], number, np.int64)
        yield Batch(np.full(SHAPE, number, np.uint8), labels, [str(number)] * SHAPE[0], SHAPE[0])


def busy(device: torch.device) -> torch.Tensor:
    """Work that keeps the device's current stream busy for a while."""
    x = torch.rand(1024 if device.type == "cuda" else 32, 1024, device=device)
    for _ in range(20):
        x = x @ x.T @ x / 1e6
    return x


def test_every_batch_is_whole_when_it_is_used(device: torch.device) -> None:
    sums: list[torch.Tensor] = []
    for fed in DeviceFeed(device, ahead=True)(batches()):
        assert fed.pictures.device.type == fed.labels.device.type == device.type
        busy(device)
        sums.append(torch.stack([fed.pictures.long().sum(), fed.labels.sum()]))
        del fed  # its memory may be given to the next batch, but not before the sum is computed
    expected = [[number * int(np.prod(SHAPE)), number * SHAPE[0]] for number in range(BATCHES)]
    assert torch.stack(sums).tolist() == expected


def test_learning_from_fed_batches_is_learning_from_the_loaders(device: torch.device) -> None:
    shifted = [batch(np.roll(PICTURES, number, axis=0)) for number in range(STEPS)]
    direct, fed = learner(device), learner(device)
    expected = torch.stack([direct.step(one, step) for step, one in enumerate(shifted)])
    feed = DeviceFeed(device, ahead=True)(iter(shifted))
    losses = torch.stack([fed.step(one, step) for step, one in enumerate(feed)])
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-2)


def test_an_error_of_the_loader_reaches_the_training(device: torch.device) -> None:
    def failing() -> Iterator[Batch]:
        yield batch()
        raise ValueError("no more pictures")

    feed = DeviceFeed(device, ahead=True)(failing())
    assert len(next(feed).labels) == len(LABELS)
    with pytest.raises(ValueError, match="no more pictures"):
        next(feed)


def test_rows_are_taken_on_the_device(device: torch.device) -> None:
    held = DevicePictures(PICTURES, device)
    rows = np.random.default_rng(0).permutation(len(PICTURES))
    assert held[rows].device.type == device.type
    assert np.array_equal(held[rows].cpu().numpy(), PICTURES[rows])
    assert np.array_equal(held[3:7].cpu().numpy(), PICTURES[3:7])


def test_pictures_stay_on_the_gpu_only_where_there_is_room(cuda: torch.device) -> None:
    assert isinstance(placing(cuda, lambda: 4 * PICTURES.nbytes)(PICTURES), DevicePictures)
    assert placing(cuda, lambda: PICTURES.nbytes)(PICTURES) is PICTURES
