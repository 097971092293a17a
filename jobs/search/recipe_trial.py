"""Trains a recipe in this process, again and again, as `striate train` does on one worker, but without Ray Train.

A training through Ray Train takes some ten seconds to start, which a comparison of many short ones cannot afford. The
same `Learner`, loader, schedule, order and draws are used; what differs: one worker, no checkpoints on disk, and the
best epoch is chosen on pictures that the comparison does not judge.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from library.bundle.description import weights_file
from library.errors import StriateError
from library.models.build import create
from library.models.classifier import Classifier, autocast
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.augmenting.choice import choose_place, training_augmenter
from library.training.batch_size import CPU_BATCH_SIZE, fitting_batch_size, spare_memory, trial
from library.training.device_feed import DeviceFeed, placing
from library.training.in_memory import MemoryLoader, PackedPictures
from library.training.learner import Learner, Score
from library.training.progress import TrainingProgress

_VALIDATION_BATCH = 256
_MAX_LOSS = 1e4


@dataclass(frozen=True)
class Setting:
    """Everything about a training but its pictures.

    Attributes:
        recipe: with absolute paths and the seed of this training.
        inputs: the model's input pipeline.
        class_counts: training pictures by class, in the order of the outputs.
        device: to train on.
        threads: that augment.
        watch: called after each step but the first, which prepares much: with the seconds since the first one, and the
            share of the training that they were for. Where early stopping may end it at any time, that share is 1. An
            error that it raises ends the training. None for no call.
    """

    recipe: Recipe
    inputs: InputPipeline
    class_counts: dict[str, int]
    device: torch.device
    threads: int = 1
    watch: Callable[[float, float], None] | None = None


def train_here(setting: Setting, train: PackedPictures, val: PackedPictures) -> Classifier:
    """Trains the recipe and returns the model of its best epoch.

    Args:
        setting: recipe, inputs and device.
        train: training pictures; in the model's size where the recipe augments nothing.
        val: pictures in the model's size, which decide the best epoch and early stopping.

    Raises:
        StriateError: the loss is not finite, or the setting's `watch` has raised it.
    """
    recipe, device = setting.recipe, setting.device
    torch.manual_seed(recipe.seed)
    classes = len(setting.class_counts)
    model = create(recipe.model, num_classes=classes, head=recipe.head, weights=weights_file(recipe.weights))
    fits = trial(recipe, model, (*setting.inputs.size, setting.inputs.channels), device)
    batch_size = fitting_batch_size(recipe, device, 1, fits)
    if recipe.batch_size == "auto" and device.type != "cuda":
        batch_size = CPU_BATCH_SIZE
    kind = "cuda" if device.type == "cuda" else "cpu"
    place = choose_place(recipe, setting.inputs, kind, in_memory=True)
    loader = MemoryLoader(
        train,
        val,
        setting.inputs,
        training_augmenter(recipe),
        augmentation=None if place is None else place.for_samples(train.flat.dtype),
        batch_size=batch_size,
        seed=recipe.seed,
        balanced=recipe.sampling == "balanced",
        rank=0,
        world_size=1,
        threads=setting.threads,
        place=placing(device, functools.partial(spare_memory, fits, batch_size, recipe.accumulate, device)),
    )
    steps = loader.steps_per_epoch
    total = recipe.steps if recipe.steps is not None else max(1, round((recipe.epochs or 0) * steps))
    learner = Learner(
        recipe,
        model,
        class_counts=setting.class_counts,
        total_steps=total,
        steps_per_epoch=steps,
        device=device,
    )
    return _run(setting, learner, loader, total)


def _run(setting: Setting, learner: Learner, loader: MemoryLoader, total: int) -> Classifier:
    recipe, feed, progress = setting.recipe, DeviceFeed(setting.device), TrainingProgress()
    best, best_score, begun = None, -math.inf, math.inf
    loader.start(0, 0, total)
    while progress.step < total and not progress.should_stop(recipe.early_stopping):
        learner.start_epoch(progress.epoch)
        losses: list[torch.Tensor] = []
        for batch in feed(loader.training()):
            losses.append(learner.step(batch, progress.step))
            progress.step += 1
            progress.step_in_epoch += 1
            if progress.step == 1:
                begun = time.perf_counter()
            elif setting.watch is not None:
                done = (progress.step - 1) / total if recipe.early_stopping is None else 1.0
                setting.watch(time.perf_counter() - begun, done)
            if progress.step_in_epoch == loader.steps_per_epoch or progress.step == total:
                break
        progress.losses = float(torch.stack(losses).double().sum())
        mean = progress.end_epoch(loader.steps_per_epoch)
        if not math.isfinite(mean) or mean > _MAX_LOSS or not learner.is_finite:
            raise StriateError(f"the loss is {mean} at step {progress.step}; a lower optimizer.lr usually helps")
        score = Score()
        for batch in feed(loader.validation(_VALIDATION_BATCH)):
            sums = zip(score.vector(), learner.score(batch).vector(), strict=True)
            score = Score.from_vector([first + second for first, second in sums])
        metrics = {"train_loss": mean, **score.means("val")}
        progress.update_stopping(recipe.early_stopping, metrics)
        metric = recipe.best_metric or "train_loss"
        value = -metrics[metric] if metric.endswith("loss") else metrics[metric]
        if value > best_score or best is None:
            best, best_score = copy.deepcopy(learner.best_model), value
    assert best is not None
    return best.eval()


def correct_of(model: Classifier, pictures: PackedPictures, device: torch.device, precision: str) -> NDArray[np.bool_]:
    """Returns which pictures a model classifies correctly; they are in the model's size."""
    uniform = pictures.uniform
    assert uniform is not None
    model = model.to(device).eval()
    answers: list[NDArray[np.int64]] = []
    with torch.inference_mode(), autocast(device, precision):
        for first in range(0, len(uniform), _VALIDATION_BATCH):
            x = torch.from_numpy(np.ascontiguousarray(uniform[first : first + _VALIDATION_BATCH])).to(device)
            answers.append(model(x.permute(0, 3, 1, 2)).argmax(1).cpu().numpy())
    return np.concatenate(answers) == pictures.labels
