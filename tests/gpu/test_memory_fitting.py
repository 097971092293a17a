"""The batch size that fits into a GPU's memory, found by running out of it, and reported with what would work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import yaml

from library.errors import StriateError
from library.models.build import create
from library.recipe import Recipe
from library.training.batch_size import fitting_batch_size, trial
from library.training.batches import Batch
from library.training.learner import Learner

pytestmark = pytest.mark.gpu

#: What is asked about a GPU: the choice looks at the type of the device only.
GPU = torch.device("cuda")
#: Memory that the trainings of this file may take.
LIMIT_MB = 512
#: Pictures that a CPU takes at once, when the tests are tried out there.
CPU_PICTURES = 40

Shape: TypeAlias = tuple[int, int, int]


def recipe(**fields: Any) -> Recipe:
    values: dict[str, Any] = {
        "data": {"train": "train"},
        "model": "resnet9(width=16)",
        "optimizer": {"name": "adamw", "lr": 0.001},
        "batch_size": "auto",
        "epochs": 1,
        **fields,
    }
    return Recipe.parse(yaml.safe_dump(values))


@pytest.fixture
def shape(device: torch.device) -> Shape:
    """The pictures' shape; small where a CPU has to train on a thousand of them."""
    return (64, 64, 3) if device.type == "cuda" else (16, 16, 3)


@pytest.fixture
def model(device: torch.device) -> Iterator[Any]:
    """A network with as much memory as a small GPU has."""
    network = create(recipe().model, num_classes=3)
    if device.type == "cpu":
        network.net.register_forward_pre_hook(_at_most(CPU_PICTURES))
        yield network
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(LIMIT_MB * 2**20 / total)
    yield network
    torch.cuda.set_per_process_memory_fraction(1.0)


def _at_most(pictures: int) -> Any:
    def hook(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > pictures:
            raise torch.OutOfMemoryError("too many pictures")

    return hook


def learn(chosen: Recipe, model: Any, shape: Shape, device: torch.device, pictures: int) -> float:
    """Two steps of a training with batches of `pictures`; returns the last loss."""
    learner = Learner(
        chosen,
        model,
        class_counts={"a": 1, "b": 1, "c": 1},
        total_steps=2,
        steps_per_epoch=2,
        device=device,
    )
    batch = Batch(np.zeros((pictures, *shape), np.uint8), np.zeros(pictures, np.int64), [""] * pictures, pictures)
    return [float(learner.step(batch, step)) for step in range(2)][-1]


def test_auto_is_a_power_of_two_with_which_a_training_runs(model: Any, shape: Shape, device: torch.device) -> None:
    chosen = recipe()
    fits = trial(chosen, model, shape, device)
    size = fitting_batch_size(chosen, GPU, 1, fits)
    assert 1 <= size < 1024, "the limit of the memory was not reached"
    assert size & (size - 1) == 0
    assert not fits(2 * size, 1)
    assert np.isfinite(learn(chosen, model, shape, device, size))


def test_parts_of_a_batch_let_more_pictures_fit(model: Any, shape: Shape, device: torch.device) -> None:
    whole, parts = recipe(), recipe(accumulate=4)
    one = fitting_batch_size(whole, GPU, 1, trial(whole, model, shape, device))
    four = fitting_batch_size(parts, GPU, 1, trial(parts, model, shape, device))
    assert four > one
    assert np.isfinite(learn(parts, model, shape, device, four))


def test_a_batch_that_does_not_fit_is_reported_with_two_ways_out(
    model: Any, shape: Shape, device: torch.device
) -> None:
    chosen = recipe(batch_size=1024)
    fits = trial(chosen, model, shape, device)
    with pytest.raises(StriateError, match="batch_size 1024 does not fit into the memory of cuda") as raised:
        fitting_batch_size(chosen, GPU, 1, fits)
    smaller = re.search(r"; (\d+) over 1 worker\(s\) fits", str(raised.value))
    parts = re.search(r"set accumulate: (\d+)$", str(raised.value))
    assert smaller is not None
    assert parts is not None
    assert np.isfinite(learn(recipe(accumulate=int(parts[1])), model, shape, device, 1024))
    assert np.isfinite(learn(recipe(), model, shape, device, int(smaller[1])))


def test_a_trial_leaves_no_memory_in_use(model: Any, shape: Shape, cuda: torch.device) -> None:
    fits = trial(recipe(), model, shape, cuda)
    fits(8, 1)
    before = torch.cuda.memory_allocated(cuda)
    assert not fits(1024, 1)
    fits(8, 1)
    assert torch.cuda.memory_allocated(cuda) <= before
    assert torch.cuda.memory_reserved(cuda) <= 64 * 2**20


def test_a_model_that_does_not_fit_at_all_says_so(model: Any, shape: Shape, cuda: torch.device) -> None:
    torch.cuda.set_per_process_memory_fraction(1e-6)
    with pytest.raises(StriateError, match="does not fit into the memory of cuda, not even with one picture"):
        fitting_batch_size(recipe(), cuda, 1, trial(recipe(), model, shape, cuda))
