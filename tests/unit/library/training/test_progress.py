"""The progress of a training across interruptions, and early stopping."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from library.recipe.schema import EarlyStopping
from library.training.progress import TrainingProgress

RULE = EarlyStopping(metric="val_top1", patience=2, min_delta=0.01)


def test_the_mean_loss_of_an_epoch_survives_an_interruption() -> None:
    progress = TrainingProgress(losses=6.0, step_in_epoch=3, step=3)
    again = TrainingProgress(**asdict(progress))
    again.losses += 2.0
    again.step_in_epoch += 1
    assert again.end_epoch(4) == pytest.approx(2.0)
    assert (again.epoch, again.step_in_epoch, again.losses) == (1, 0, 0.0)


def test_rejected_pictures_are_those_of_the_current_epoch() -> None:
    progress = TrainingProgress(rejected=2, on_cpu=8, pictures=24, step_in_epoch=3)
    again = TrainingProgress(**asdict(progress))
    again.rejected += 1
    again.step_in_epoch += 1
    assert again.rejected == 3
    again.end_epoch(4)
    assert (again.rejected, again.on_cpu, again.pictures) == (0, 8, 24)


def test_the_last_step_may_end_an_epoch_early() -> None:
    progress = TrainingProgress(losses=3.0, step_in_epoch=2)
    assert progress.end_epoch(4) == pytest.approx(1.5)
    assert (progress.epoch, progress.step_in_epoch) == (0, 2)


def test_early_stopping_is_the_same_with_an_interruption_after_any_epoch() -> None:
    values = [0.5, 0.7, 0.7, 0.69, 0.9]
    for broken_after in range(len(values)):
        progress, steps_done = TrainingProgress(), 0
        for number, value in enumerate(values):
            if number == broken_after:
                progress = TrainingProgress(**asdict(progress))
            progress.update_stopping(RULE, {"val_top1": value})
            steps_done += 1
            if progress.should_stop(RULE):
                break
        assert steps_done == 4, "two epochs after the best"


def test_gains_below_min_delta_count_once_they_add_up_to_it() -> None:
    progress = TrainingProgress()
    stale: list[int] = []
    for value in (0.5, 0.505, 0.511, 0.512):
        progress.update_stopping(RULE, {"val_top1": value})
        stale.append(progress.stale_epochs)
    assert stale == [0, 1, 0, 1]


def test_a_lower_loss_is_better() -> None:
    rule, progress = EarlyStopping(metric="val_loss", patience=1), TrainingProgress()
    progress.update_stopping(rule, {"val_loss": 1.0})
    progress.update_stopping(rule, {"val_loss": 0.5})
    assert progress.stale_epochs == 0
    progress.update_stopping(rule, {"val_loss": 0.6})
    assert progress.should_stop(rule)
