"""Where a training augments: what the recipe says, what its steps allow, and what is faster without a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from library.errors import UsageError
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.augmenting.choice import AugmentPlace, DeviceType, choose_place, describe_places


def recipe(**fields: Any) -> Recipe:
    base = {"data": {"train": "train"}, "model": "lenet5", "optimizer": {"name": "sgd", "lr": 0.1}}
    return Recipe.parse(yaml.safe_dump({**base, "batch_size": 4, "epochs": 1, **fields}))


def inputs(side: int) -> InputPipeline:
    return InputPipeline.parse("", f'resize([{side}, {side}], mode="exact")', (side, side), 3)


@pytest.mark.parametrize(
    ("augment", "side", "device", "in_memory", "on"),
    [
        ("random_crop(32, padding=4) | flip | random_erase", 32, "cpu", True, "device"),
        ("random_crop(32, padding=4) | flip | random_erase", 32, "cpu", False, "cpu"),
        ("random_crop(64, padding=4) | flip", 64, "cpu", True, "cpu"),
        ("flip | rotate(10)", 32, "cpu", True, "cpu"),
        ("flip | rotate(10)", 32, "cuda", True, "device"),
        ("random_resized_crop(224) | flip", 224, "cuda", False, "device"),
        ("flip | jpeg_quality", 224, "cuda", True, "cpu"),
    ],
)
def test_auto_takes_what_is_faster(augment: str, side: int, device: DeviceType, in_memory: bool, on: str) -> None:
    place = choose_place(recipe(augment=augment), inputs(side), device, in_memory=in_memory)
    assert place is not None
    assert place.on == on


@pytest.mark.parametrize("on", ["cpu", "device"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_recipe_that_says_where_is_obeyed(on: str, device: DeviceType) -> None:
    place = choose_place(recipe(augment="flip | rotate(10)", augment_on=on), inputs(224), device, in_memory=True)
    assert str(place) == f"{on} (as augment_on: {on} says)"


def test_a_step_without_a_batched_form_is_named() -> None:
    augment = "sometimes(0.5, jpeg_quality | median_blur) | flip"
    with pytest.raises(UsageError, match=r"'jpeg_quality', 'median_blur' have no batched form"):
        choose_place(recipe(augment=augment, augment_on="device"), inputs(32), "cpu", in_memory=True)
    facts = describe_places(recipe(augment=augment), inputs(32), in_memory=True)
    assert facts == {"augment_on": "cpu ('jpeg_quality', 'median_blur' have no batched form)"}


def test_both_choices_are_told_where_a_gpu_changes_them() -> None:
    facts = describe_places(recipe(augment="rotate(10)"), inputs(32), in_memory=True)
    assert facts["augment_on"].startswith("device with a GPU, else cpu (without a GPU, only small pictures")
    assert describe_places(recipe(), inputs(32), in_memory=True) == {}


def test_pictures_of_16_bits_are_augmented_one_by_one() -> None:
    auto = choose_place(recipe(augment="flip"), inputs(32), "cuda", in_memory=True)
    told = choose_place(recipe(augment="flip", augment_on="device"), inputs(32), "cuda", in_memory=True)
    assert auto is not None
    assert told is not None
    assert str(auto.for_samples(np.dtype(np.uint16))) == "cpu (pictures of uint16 have no batched form)"
    assert auto.for_samples(np.dtype(np.uint8)) == auto
    with pytest.raises(UsageError, match="augment_on: device cannot be used: pictures of uint16"):
        told.for_samples(np.dtype(np.uint16))
    facts = describe_places(recipe(augment="flip"), inputs(32), in_memory=False, dtype="uint16")
    assert facts == {"augment_on": "cpu (pictures of uint16 have no batched form)"}


def test_a_training_says_how_many_pictures_were_augmented_elsewhere() -> None:
    place = AugmentPlace("device", "all steps have a batched form")
    assert place.after(4000, 0) == "device (all steps have a batched form)"
    assert place.after(4000, 1200) == (
        "device (all steps have a batched form), but 1,200 of 4,000 pictures on the cpu (their batches have other than "
        "8 bits)"
    )
