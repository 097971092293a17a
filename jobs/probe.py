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
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.augmenting.choice import AugmentPlace, batch_drawer, choose_place, training_augmenter
from library.training.augmenting.drawing import BatchDrawer
from library.training.augmenting.execution import augmented_arrays
from library.training.augmenting.operations import RaggedPictures, UndonePictures
from library.training.batch_size import fitting_batch_size, trial
from library.training.batches import Batch
from library.training.learner import Learner
from library.training.rows import Rows, check_columns, read_labelled_rows, read_pictures, read_rows

_PICTURES = 512
_BATCH = 128


@dataclass(frozen=True)
class FeedRates:
    """How pictures are augmented, and what that takes.

    Attributes:
        augment_on: where they are augmented, and why there; empty where they are not.
        augment_pictures_per_s: pictures that one CPU augments per second, with resizing to the model's input.
        only_drawn: whether a GPU augments, so that the CPU of that rate only draws the parameters.
        cpus_per_device: CPUs that keep one device busy.
    """

    augment_on: str
    augment_pictures_per_s: float
    only_drawn: bool
    cpus_per_device: float


@dataclass(frozen=True)
class Rates:
    """The rates of a recipe's stages.

    Attributes:
        device: the device that was measured.
        decode_pictures_per_s: pictures that one CPU decodes per second, with the input pipeline.
        step_pictures_per_s: pictures that one device learns from per second; where a GPU augments, with that.
        streamed: of pictures that are streamed from shards.
        resident: of decoded pictures that are held in memory.
    """

    device: str
    decode_pictures_per_s: float
    step_pictures_per_s: float
    streamed: FeedRates
    resident: FeedRates


def probe(recipe: Recipe, *, seconds: float = 30.0, device: str = "auto") -> Rates:
    """Measures the rates of a recipe's stages on this machine, with the first pictures of its training set.

    Args:
        recipe: its data, input pipeline, augmentation, model and batch size are used.
        seconds: duration of the measurement, divided among the stages.
        device: device of the model: auto, cpu or cuda.

    Raises:
        UsageError: when none of the pictures can be used.
    """
    inputs, chosen = model_inputs(recipe), choose_device(device)
    samples = _first_pictures(recipe, inputs)
    on_gpu = chosen.type == "cuda"
    streamed, resident = (_place(recipe, samples, on_gpu=on_gpu, in_memory=in_memory) for in_memory in (False, True))
    drawers = [batch_drawer(training_augmenter(recipe), inputs, place) for place in (streamed, resident)]
    differ = (drawers[0] is None) != (drawers[1] is None)
    each = seconds / (4 if differ else 3)
    decoded = _rate(samples.decode, each)
    rates = [_augment_rate(recipe, samples, drawer, each, on_gpu=on_gpu) for drawer in drawers[: 1 + differ]]
    classes = _rows(recipe).names
    drawer = drawers[1] if on_gpu else None
    stepped, where = _step_rate(recipe, inputs, samples.pictures, len(classes), each, chosen, drawer)

    def feed(place: AugmentPlace | None, augmented: float, cpus: float) -> FeedRates:
        only_drawn = on_gpu and place is not None and place.on == "device"
        return FeedRates("" if place is None else str(place), round(augmented, 1), only_drawn, round(cpus, 2))

    return Rates(
        device=where,
        decode_pictures_per_s=round(decoded, 1),
        step_pictures_per_s=round(stepped, 1),
        streamed=feed(streamed, rates[0], stepped * (1 / decoded + 1 / rates[0])),
        resident=feed(resident, rates[-1], stepped / rates[-1] if recipe.augment else 0.0),
    )


def _place(recipe: Recipe, samples: _Samples, *, on_gpu: bool, in_memory: bool) -> AugmentPlace | None:
    place = choose_place(recipe, samples.inputs, "cuda" if on_gpu else "cpu", in_memory=in_memory)
    if place is None:
        return None
    return place.for_samples(np.result_type(*{pixels.dtype for pixels in samples.pictures}))


def _augment_rate(
    recipe: Recipe, samples: _Samples, drawer: BatchDrawer | None, seconds: float, *, on_gpu: bool
) -> float:
    """Returns pictures per second that one CPU augments, or draws for a GPU."""
    if drawer is not None:
        return _batch_rate(drawer, samples.pictures, seconds, executed=not on_gpu)
    augmenter = _augmenter(recipe)
    return _rate(lambda number: samples.augment(number, augmenter), seconds)


def cpu_rates(recipe: Recipe, seconds: float) -> tuple[float, float]:
    """Returns the rates at which one CPU decodes (with the input pipeline) and augments one by one (with resizing).

    Args:
        recipe: its data, input pipeline and augmentation are used.
        seconds: duration of each of the two measurements.

    Raises:
        UsageError: when none of the first pictures can be used.
    """
    samples, augmenter = _first_pictures(recipe, model_inputs(recipe)), _augmenter(recipe)
    return _rate(samples.decode, seconds), _rate(lambda number: samples.augment(number, augmenter), seconds)


def _augmenter(recipe: Recipe) -> Augmenter | None:
    return Augmenter(Pipeline.parse(recipe.augment), recipe.seed) if recipe.augment else None


@dataclass(frozen=True)
class _Samples:
    """The first pictures of a training set: as stored, and decoded."""

    records: Sequence[Mapping[str, Any]]
    pictures: Sequence[Pixels]
    inputs: InputPipeline

    def decode(self, number: int) -> None:
        with contextlib.suppress(BadPicture):
            _opened(self.records[number % len(self.records)], self.inputs)

    def augment(self, number: int, augmenter: Augmenter | None) -> None:
        pixels = self.pictures[number % len(self.pictures)]
        if augmenter is not None:
            pixels = augmenter.apply(pixels, number // len(self.pictures), str(number))
        self.inputs.fitted(pixels)


def _first_pictures(recipe: Recipe, inputs: InputPipeline) -> _Samples:
    cv2.setNumThreads(1)
    uri = storage.normalize(recipe.data.train)
    rows = _rows(recipe)
    shard = int(np.flatnonzero(rows.counts)[0])
    check_columns(rows, inputs.columns)
    records = read_pictures(rows, (shard, 0, _PICTURES), inputs.columns)
    pictures: list[Pixels] = []
    for record in records:
        with contextlib.suppress(BadPicture):
            pictures.append(_opened(record, inputs))
    if not pictures:
        raise UsageError(f"none of the first {len(records)} pictures of {uri} can be used")
    return _Samples(records, pictures, inputs)


def _opened(record: Mapping[str, Any], inputs: InputPipeline) -> Pixels:
    return inputs.before_fit(record["bytes"], **{name: value for name, value in record.items() if name != "bytes"})


def _batch_rate(drawer: BatchDrawer, pictures: Sequence[Pixels], seconds: float, *, executed: bool) -> float:
    """Returns pictures per second for which one CPU draws an augmentation, and executes it if that is what it does."""
    undone = _undone(drawer, pictures, _BATCH)

    def work(_: int) -> None:
        batch = drawer.undone(undone.pictures, 0, [str(place) for place in range(_BATCH)])
        if executed:
            augmented_arrays(batch)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rate(work, seconds) * _BATCH
    finally:
        torch.set_num_threads(threads)


def _undone(drawer: BatchDrawer, pictures: Sequence[Pixels], count: int) -> UndonePictures:
    """Returns a batch of usable pictures, repeated as needed."""
    packed = RaggedPictures.pack(pictures)
    keys = [str(number) for number in range(len(pictures))]
    rejected = drawer.draw(packed.shapes, 0, keys).rejected
    usable = [number for number in range(len(pictures)) if number not in rejected]
    if not usable:
        raise UsageError(f"no picture can be augmented; the first one: {rejected[0].detail}")
    batch = packed[np.asarray(usable)[np.arange(count) % len(usable)]]
    return drawer.undone(batch, 0, [str(number) for number in range(count)])


def _rows(recipe: Recipe) -> Rows:
    uri, classes = storage.normalize(recipe.data.train), recipe.data.classes
    chosen = None if classes == "all" else classes
    if recipe.data.labels is not None:
        return read_labelled_rows(uri, None, recipe.data.labels, chosen)[0]
    return read_rows(uri, chosen)


def _rate(work: Callable[[int], None], seconds: float) -> float:
    """Returns the calls of `work` per second."""
    work(0)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work(done)
        done += 1
    return done / (time.perf_counter() - start)


def _step_rate(
    recipe: Recipe,
    inputs: InputPipeline,
    pictures: Sequence[Pixels],
    num_classes: int,
    seconds: float,
    chosen: torch.device,
    drawer: BatchDrawer | None,
) -> tuple[float, str]:
    """Returns pictures per second of training from memory, which `drawer` draws for; and the name of the device."""
    recipe = recipe.model_copy(update={"cache_features": False})  # measures the backbone too
    model = create(recipe.model, num_classes=num_classes, head=recipe.head)
    shape = (*inputs.size, inputs.channels)
    batch_size = fitting_batch_size(recipe, chosen, 1, trial(recipe, model, shape, chosen))
    random = np.random.default_rng(0)
    plain = random.integers(0, 256, (batch_size, *shape), np.uint8)
    shown = plain if drawer is None else _undone(drawer, pictures, batch_size)
    batch = Batch(shown, random.integers(0, num_classes, batch_size), [""] * batch_size, batch_size)
    counts = {str(number): 1 for number in range(num_classes)}
    learner = Learner(
        recipe,
        model,
        class_counts=counts,
        total_steps=10**9,
        steps_per_epoch=1000,
        device=chosen,
        label_sets=None if recipe.data.labels is None else [[]],
    )

    def step(number: int) -> None:
        loss = learner.step(batch, number)
        if number % 10 == 9:
            loss.item()  # waits for the device

    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    for number in range(3):
        step(number)
    return _rate(step, seconds) * batch_size, name
