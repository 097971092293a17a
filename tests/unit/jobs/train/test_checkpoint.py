"""A training that is resumed from a checkpoint in the middle of an epoch ends in the bundle of an uninterrupted one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from jobs.train.checkpoint import TrainingCheckpoint
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord
from library.models.build import create
from library.pipeline.inputs import InputPipeline
from library.recipe import Recipe
from library.training.augmenting.choice import choose_place, training_augmenter
from library.training.augmenting.execution import augmented_arrays
from library.training.augmenting.operations import UndonePictures
from library.training.in_memory import MemoryLoader, PackedPictures
from library.training.learner import Learner
from library.training.progress import TrainingProgress

PICTURES, BATCH, EPOCHS = 40, 8, 2
STEPS_PER_EPOCH = PICTURES // BATCH
MODEL = "lenet5(in_chans=3)"
FIT = 'resize([28, 28], mode="exact")'
CPU = torch.device("cpu")


class Training:
    """A training as one process runs it, until it ends or is killed.

    Args:
        place: the recipe's `augment_on`.
        checkpoint: folder of the checkpoint that it resumes from; None to begin.
    """

    def __init__(self, place: str, checkpoint: Path | None = None) -> None:
        fields: dict[str, Any] = {
            "data": {"train": "train"},
            "model": MODEL,
            "augment": "random_crop(28, padding=3) | flip | sometimes(0.5, gaussian_noise(sigma=0.1) | rotate(20))",
            "augment_on": place,
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            "batch_size": BATCH,
            "epochs": EPOCHS,
            "ema": 0.9,
            "mixup": 0.2,
        }
        recipe = Recipe.parse(yaml.safe_dump(fields))
        inputs = InputPipeline.parse("", FIT, (28, 28), 3)
        noise = np.random.default_rng(1).integers(0, 256, (PICTURES, 28, 28, 3), np.uint8)
        keys = [f"picture/{number}" for number in range(PICTURES)]
        self.loader = MemoryLoader(
            PackedPictures.pack(list(noise), [0, 1] * (PICTURES // 2), keys, Counter()),
            None,
            inputs,
            training_augmenter(recipe),
            augmentation=choose_place(recipe, inputs, "cpu", in_memory=True),
            batch_size=BATCH,
            seed=recipe.seed,
            balanced=False,
            rank=0,
            world_size=1,
        )
        torch.manual_seed(recipe.seed)
        self.learner = Learner(
            recipe,
            create(MODEL, num_classes=2),
            class_counts={"a": PICTURES // 2, "b": PICTURES // 2},
            total_steps=EPOCHS * STEPS_PER_EPOCH,
            steps_per_epoch=STEPS_PER_EPOCH,
            device=CPU,
        )
        self.progress = TrainingProgress(batch_size=BATCH)
        if checkpoint is not None:
            saved = TrainingCheckpoint.load(str(checkpoint), "cpu")
            self.progress = saved.progress
            self.learner.start_epoch(self.progress.epoch)
            self.learner.restore(saved.learner)
        self.drawn: list[Any] = []

    def run(self, until: int = EPOCHS * STEPS_PER_EPOCH) -> None:
        """Trains until a step."""
        progress = self.progress
        self.loader.start(progress.epoch, progress.step_in_epoch, EPOCHS * STEPS_PER_EPOCH - progress.step)
        while progress.step < until:
            self.learner.start_epoch(progress.epoch)
            for batch in self.loader.training():
                self.drawn.append(batch.pictures)
                progress.losses += float(self.learner.step(batch, progress.step))
                progress.step += 1
                progress.step_in_epoch += 1
                if progress.step == until:
                    break
            progress.end_epoch(STEPS_PER_EPOCH)

    def save(self, folder: Path) -> None:
        TrainingCheckpoint(self.learner.state(), self.learner.best_model.state_dict(), self.progress).save(str(folder))

    def files(self) -> Mapping[str, bytes]:
        record = BundleRecord(model=MODEL, classes=("a", "b"), steps="", fit=FIT, input_size=(28, 28), channels=3)
        return Bundle.of_model(record, self.learner.best_model, "cpu").files()


def augmented(pictures: Any) -> NDArray[np.uint8]:
    return augmented_arrays(pictures) if isinstance(pictures, UndonePictures) else np.asarray(pictures)


@pytest.mark.parametrize("place", ["device", "cpu"])
def test_a_training_killed_within_an_epoch_ends_in_the_same_bundle(place: str, tmp_path: Path) -> None:
    undisturbed, killed = Training(place), Training(place)
    undisturbed.run()
    killed.run(until=STEPS_PER_EPOCH + 2)
    killed.save(tmp_path)
    resumed = Training(place, tmp_path)
    assert (resumed.progress.epoch, resumed.progress.step_in_epoch) == (1, 2)
    resumed.run()
    assert len(resumed.drawn) == STEPS_PER_EPOCH - 2
    for one, other in zip(undisturbed.drawn[-len(resumed.drawn) :], resumed.drawn, strict=True):
        assert isinstance(one, UndonePictures) == isinstance(other, UndonePictures) == (place == "device")
        np.testing.assert_array_equal(augmented(one), augmented(other))
    assert resumed.progress.losses == undisturbed.progress.losses
    assert resumed.files() == undisturbed.files()
