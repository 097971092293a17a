"""The batch size that fits into a GPU's memory, tested without a GPU: the trial is passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml

from library.errors import StriateError, UsageError
from library.models.build import create
from library.recipe import Recipe
from library.training.batch_size import (
    CPU_BATCH_SIZE,
    check_batch_norms,
    fitting_batch_size,
    memory_errors_explained,
    trial,
)

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def recipe(**fields: Any) -> Recipe:
    values: dict[str, Any] = {
        "data": {"train": "train"},
        "model": "lenet5",
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": "auto",
        "epochs": 3,
        **fields,
    }
    return Recipe.parse(yaml.safe_dump(values))


def memory(max_pictures: int, *, parts_cost: int = 0) -> Callable[[int, int], bool]:
    """A device whose memory holds this many pictures, and fewer if gradients stay in it between parts."""

    def fits(pictures: int, accumulate: int) -> bool:
        return -(-pictures // accumulate) <= max_pictures - (parts_cost if accumulate > 1 else 0)

    return fits


def test_auto_is_the_largest_power_of_two_that_fits() -> None:
    assert fitting_batch_size(recipe(), GPU, 2, memory(100)) == 64
    assert fitting_batch_size(recipe(accumulate=4), GPU, 2, memory(100)) == 256


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does() -> None:
    assert fitting_batch_size(recipe(batch_size=200), GPU, 2, memory(100)) == 100
    with pytest.raises(StriateError, match=r"200 over 2 worker\(s\) fits, or keep it and set accumulate: 4$"):
        fitting_batch_size(recipe(batch_size=800), GPU, 2, memory(100))


def test_the_suggested_number_of_parts_has_been_tried() -> None:
    with pytest.raises(StriateError, match=r"64 over 1 worker\(s\) fits, .*set accumulate: 8$"):
        fitting_batch_size(recipe(batch_size=256), GPU, 1, memory(64, parts_cost=10))


def test_a_model_that_does_not_fit_with_one_picture_is_refused() -> None:
    with pytest.raises(StriateError, match="not even with one picture"):
        fitting_batch_size(recipe(), GPU, 1, memory(0))


def test_nothing_is_tried_on_cpus() -> None:
    assert fitting_batch_size(recipe(), CPU, 2, memory(0)) == CPU_BATCH_SIZE // 2


@pytest.mark.parametrize(
    "fields",
    [
        {"ema": 0.9, "mixup": 0.2, "clip_grad": 1.0},
        {"freeze": "all", "unfreeze": {1: 1}},
        {"freeze": "all", "cache_features": True},
    ],
)
def test_a_trial_follows_the_recipe_and_leaves_the_model_unchanged(fields: dict[str, Any]) -> None:
    model = create("lenet5", num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert trial(recipe(**fields), model, (28, 28, 1), CPU)(6, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_trial_that_runs_out_of_memory_does_not_fit() -> None:
    model = create("lenet5", num_classes=3)
    model.net.register_forward_pre_hook(_at_most(4))
    fits = trial(recipe(), model, (28, 28, 1), CPU)
    assert not fits(5, 1)
    assert fits(5, 2)


@pytest.mark.parametrize(("at_once", "parts", "expected"), [(5, 1, 4), (64, 1, 64), (3, 4, 8), (10**6, 1, 1024)])
def test_auto_finds_by_real_steps_what_fits(at_once: int, parts: int, expected: int) -> None:
    model = create("lenet5", num_classes=3)
    model.net.register_forward_pre_hook(_at_most(at_once))
    tried = recipe(accumulate=parts)
    assert fitting_batch_size(tried, GPU, 1, trial(tried, model, (28, 28, 1), CPU)) == expected


def test_a_batch_that_real_steps_do_not_fit_is_refused_with_parts() -> None:
    model = create("lenet5", num_classes=3)
    model.net.register_forward_pre_hook(_at_most(10))
    tried = recipe(batch_size=64)
    with pytest.raises(StriateError, match=r"8 over 1 worker\(s\) fits, or keep it and set accumulate: 8$"):
        fitting_batch_size(tried, GPU, 1, trial(tried, model, (28, 28, 1), CPU))


def test_a_step_without_enough_memory_says_what_needs_less() -> None:
    advice = "batch_size 128 does not fit into the memory of cpu: .*batch_size: auto, .*set accumulate: 8 or more"
    with pytest.raises(StriateError, match=advice), memory_errors_explained(recipe(accumulate=4), 128, CPU):
        torch.empty(2**60)
    with pytest.raises(StriateError, match=advice), memory_errors_explained(recipe(accumulate=4), 128, CPU):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match="mat1 and mat2"), memory_errors_explained(recipe(), 128, CPU):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def _at_most(pictures: int) -> Any:
    def hook(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > pictures:
            raise torch.OutOfMemoryError("too many pictures")

    return hook


@pytest.mark.parametrize(
    ("fields", "batch_size", "world_size", "least"),
    [
        ({}, 1, 1, 2),
        ({}, 7, 4, 8),
        ({"accumulate": 4}, 7, 1, 8),
        ({"accumulate": 3}, 11, 2, 12),
        ({"freeze": 1}, 1, 1, 2),
        ({"freeze": "all", "unfreeze": {1: "none"}}, 1, 1, 2),
    ],
)
def test_batch_norms_are_not_trained_on_one_picture_at_a_time(
    fields: dict[str, Any], batch_size: int, world_size: int, least: int
) -> None:
    normed = recipe(model="resnet9(width=4)", **fields)
    model = create(normed.model, num_classes=3)
    with pytest.raises(UsageError, match=rf"has batch norms, .* use a batch_size .* of {least} or more"):
        check_batch_norms(normed, model, batch_size, world_size)
    check_batch_norms(normed, model, least, world_size)


def test_one_picture_at_a_time_is_allowed_where_no_batch_norm_is_trained() -> None:
    check_batch_norms(recipe(), create("lenet5", num_classes=3), 1, 1)
    frozen = recipe(model="resnet9(width=4)", freeze="all")
    check_batch_norms(frozen, create(frozen.model, num_classes=3), 1, 1)
