"""Measures how fast a machine decodes, augments and trains, and so how many CPUs a GPU needs: `striate plan`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from jobs.train.plan import model_inputs
from library import storage
from library.errors import BadPicture, UsageError
from library.imaging.picture import Pixels
from library.models.build import create
from library.models.classifier import choose_device
from library.pipeline import Pipeline
from library.pipeline.augmentation import Augmenter
from library.recipe import Recipe
from library.training.batch_size import fitting_batch_size, trial
from library.training.batches import Batch
from library.training.learner import Learner
from library.training.rows import check_columns, read_pictures, read_rows

_PICTURES = 512


@dataclass(frozen=True)
class Rates:
    """The rates of a recipe's stages.

    Attributes:
        device: the device that was measured.
        decode_pictures_per_s: pictures that one CPU decodes per second, with the input pipeline.
        augment_pictures_per_s: pictures that one CPU augments per second, with resizing to the model's input.
        step_pictures_per_s: pictures that one device learns from per second.
        cpus_per_device: CPUs that keep one device busy with pictures streamed from shards.
        cpus_per_device_resident: CPUs that keep one device busy with decoded pictures in memory.
    """

    device: str
    decode_pictures_per_s: float
    augment_pictures_per_s: float
    step_pictures_per_s: float
    cpus_per_device: float
    cpus_per_device_resident: float


def probe(recipe: Recipe, *, seconds: float = 30.0, device: str = "auto") -> Rates:
    """Measures the rates of a recipe's stages on this machine, with the first pictures of its training set.

    Args:
        recipe: its data, input pipeline, augmentation, model and batch size are used.
        seconds: duration of the measurement, a third for each stage.
        device: device of the model: auto, cpu or cuda.

    Raises:
        UsageError: when none of the pictures can be used.
    """
    each = seconds / 3
    decoded, augmented = cpu_rates(recipe, each)
    inputs = model_inputs(recipe)
    classes = read_rows(storage.normalize(recipe.data.train), _chosen(recipe)).classes
    stepped, where = _step_rate(recipe, inputs.size, inputs.channels, len(classes), each, device)
    return Rates(
        device=where,
        decode_pictures_per_s=round(decoded, 1),
        augment_pictures_per_s=round(augmented, 1),
        step_pictures_per_s=round(stepped, 1),
        cpus_per_device=round(stepped * (1 / decoded + 1 / augmented), 2),
        cpus_per_device_resident=round(stepped / augmented, 2) if recipe.augment else 0.0,
    )


def cpu_rates(recipe: Recipe, seconds: float) -> tuple[float, float]:
    """Returns the pictures per second that one CPU decodes (with the input pipeline) and augments (with resizing).

    Args:
        recipe: its data, input pipeline and augmentation are used.
        seconds: duration of each of the two measurements.

    Raises:
        UsageError: when none of the first pictures can be used.
    """
    cv2.setNumThreads(1)
    uri = storage.normalize(recipe.data.train)
    rows = read_rows(uri, _chosen(recipe))
    inputs = model_inputs(recipe)
    shard = int(np.flatnonzero(rows.counts)[0])
    check_columns(rows, inputs.columns)
    records = read_pictures(rows, (shard, 0, _PICTURES), inputs.columns)

    def opened(record: Mapping[str, Any]) -> Pixels:
        return inputs.before_fit(record["bytes"], **{name: value for name, value in record.items() if name != "bytes"})

    pictures: list[Pixels] = []
    for record in records:
        with contextlib.suppress(BadPicture):
            pictures.append(opened(record))
    if not pictures:
        raise UsageError(f"none of the first {len(records)} pictures of {uri} can be used")

    def decode(number: int) -> None:
        with contextlib.suppress(BadPicture):
            opened(records[number % len(records)])

    augmenter = Augmenter(Pipeline.parse(recipe.augment), recipe.seed) if recipe.augment else None

    def augment(number: int) -> None:
        pixels = pictures[number % len(pictures)]
        if augmenter is not None:
            pixels = augmenter.apply(pixels, number // len(pictures), str(number))
        inputs.fitted(pixels)

    return _rate(decode, seconds), _rate(augment, seconds)


def _chosen(recipe: Recipe) -> Sequence[str] | None:
    return None if recipe.data.classes == "all" else recipe.data.classes


def _rate(work: Callable[[int], None], seconds: float) -> float:
    """Returns the calls of `work` per second."""
    work(0)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work(done)
        done += 1
    return done / (time.perf_counter() - start)


def _step_rate(
    recipe: Recipe, size: tuple[int, int], channels: int, num_classes: int, seconds: float, device: str
) -> tuple[float, str]:
    """Returns the pictures per second of training from memory, and the name of the device."""
    recipe = recipe.model_copy(update={"cache_features": False})  # measures the backbone too
    chosen = choose_device(device)
    model = create(recipe.model, num_classes=num_classes, head=recipe.head)
    batch_size = fitting_batch_size(recipe, chosen, 1, trial(recipe, model, (*size, channels), chosen))
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (batch_size, *size, channels), np.uint8)
    batch = Batch(pictures, random.integers(0, num_classes, batch_size), [""] * batch_size, batch_size)
    counts = {str(number): 1 for number in range(num_classes)}
    learner = Learner(recipe, model, class_counts=counts, total_steps=10**9, steps_per_epoch=1000, device=chosen)

    def step(number: int) -> None:
        loss = learner.step(batch, number)
        if number % 10 == 9:
            loss.item()  # waits for the device

    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    for number in range(3):
        step(number)
    return _rate(step, seconds) * batch_size, name
