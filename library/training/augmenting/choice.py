"""Chooses where a training's pictures are augmented: in batches by torch, or one by one on CPUs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from library.errors import UsageError
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.augmenting.drawing import BatchDrawer
from library.training.augmenting.forms import steps_without_form

DeviceType: TypeAlias = Literal["cpu", "cuda"]

# Without a GPU whole batches are faster only for small pictures whose pixels are moved, not mixed: there the time of
# one picture is mostly that of calling functions. benchmarks/train/augment_throughput.py measures it.
_MOVING_STEPS = frozenset({"center_crop", "crop", "flip", "random_crop", "random_erase", "shift"})
_SMALL_PX = 48
_AS_TOLD = {on: f"as augment_on: {on} says" for on in ("cpu", "device")}


@dataclass(frozen=True)
class AugmentPlace:
    """Where pictures are augmented.

    Attributes:
        on: device: a batch at a time, on the device that trains; cpu: one by one, by what decodes them or by threads.
        reason: why, as the end of a sentence.
    """

    on: Literal["cpu", "device"]
    reason: str

    def __str__(self) -> str:
        return f"{self.on} ({self.reason})"

    def for_samples(self, dtype: np.dtype[Any]) -> AugmentPlace:
        """The place for pictures of a dtype: batches are augmented in 8 bits only.

        Raises:
            UsageError: for `augment_on: device` with other samples.
        """
        if self.on == "cpu" or dtype == np.uint8:
            return self
        reason = f"pictures of {dtype} have no batched form"
        if self.reason == _AS_TOLD["device"]:
            raise UsageError(f"augment_on: device cannot be used: {reason}; set augment_on: auto")
        return AugmentPlace("cpu", reason)

    def after(self, pictures: int, on_cpu: int) -> str:
        """The text at the end of a training that has learned from `pictures`, `on_cpu` of them augmented on the CPU."""
        if not on_cpu:
            return str(self)
        return f"{self}, but {on_cpu:,} of {pictures:,} pictures on the cpu (their batches have other than 8 bits)"


def training_augmenter(recipe: Recipe) -> Augmenter | None:
    """The recipe's augmentation of training pictures; None where there is none, or where features are cached."""
    if recipe.augment is None or recipe.cache_features:
        return None
    return Augmenter(Pipeline.parse(recipe.augment), recipe.seed)


def choose_place(recipe: Recipe, inputs: InputPipeline, device: DeviceType, *, in_memory: bool) -> AugmentPlace | None:
    """Chooses where a training augments; None if it does not augment.

    Args:
        recipe: `augment` and `augment_on` are used.
        inputs: the model's input pipeline.
        device: the type of the device that trains.
        in_memory: whether decoded pictures are held in memory; else they are streamed.

    Raises:
        UsageError: for `augment_on: device` with a step that has no batched form; names it.
    """
    augmenter = training_augmenter(recipe)
    if augmenter is None:
        return None
    steps = (*augmenter.pipeline.steps, *inputs.fit.steps)
    missing = list(dict.fromkeys(step.name for step in steps_without_form(steps)))
    if recipe.augment_on == "device" and missing:
        raise UsageError(
            f"augment_on: device cannot be used: {_names(missing)} no batched form with these parameters; set "
            "augment_on: auto, or leave the step out"
        )
    if recipe.augment_on != "auto":
        return AugmentPlace(recipe.augment_on, _AS_TOLD[recipe.augment_on])
    if missing:
        return AugmentPlace("cpu", f"{_names(missing)} no batched form")
    if device == "cuda":
        return AugmentPlace("device", "all steps have a batched form")
    if not in_memory:
        return AugmentPlace("cpu", "without a GPU, streamed pictures are augmented where they are decoded")
    if max(inputs.size) <= _SMALL_PX and all(step.name in _MOVING_STEPS for step in augmenter.pipeline.steps):
        return AugmentPlace("device", f"whole batches are faster up to {_SMALL_PX} px if all steps only move pixels")
    return AugmentPlace("cpu", "without a GPU, only small pictures whose pixels are moved are faster in batches")


def describe_places(
    recipe: Recipe, inputs: InputPipeline, *, in_memory: bool, dtype: str = "uint8"
) -> Mapping[str, str]:
    """Where a training augments pictures of a dtype, for people: `augment_on`; with and without a GPU if that differs.

    Raises:
        UsageError: for `augment_on: device` where that is impossible.
    """
    gpu, cpu = (choose_place(recipe, inputs, device, in_memory=in_memory) for device in ("cuda", "cpu"))
    if gpu is None or cpu is None:
        return {}
    gpu, cpu = (place.for_samples(np.dtype(dtype)) for place in (gpu, cpu))
    if gpu.on == "cpu":
        return {"augment_on": str(gpu)}  # its reason holds without a GPU too
    return {"augment_on": str(cpu) if cpu.on == "device" else f"device with a GPU, else {cpu}"}


def batch_drawer(augmenter: Augmenter | None, inputs: InputPipeline, place: AugmentPlace | None) -> BatchDrawer | None:
    """What draws whole batches; None where pictures are augmented one by one, or not at all."""
    if augmenter is None or place is None or place.on == "cpu":
        return None
    return BatchDrawer(augmenter, inputs)


def _names(names: list[str]) -> str:
    text = ", ".join(f"'{name}'" for name in names)
    return f"{text} has" if len(names) == 1 else f"{text} have"
