"""What a training that goes on knows of the epochs before."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from library.recipe.schema import EarlyStopping
from library.training.position import Position

RULE = EarlyStopping(metric="val_top1", patience=2, min_delta=0.01)


def test_an_epochs_mean_loss_is_kept_over_a_break_in_the_middle_of_it() -> None:
    at = Position(losses=6.0, step_in_epoch=3, step=3)
    again = Position(**asdict(at))
    again.losses += 2.0
    again.step_in_epoch += 1
    assert again.end_epoch(4) == pytest.approx(2.0)
    assert (again.epoch, again.step_in_epoch, again.losses) == (1, 0, 0.0)


def test_the_last_steps_may_break_an_epoch_off() -> None:
    at = Position(losses=3.0, step_in_epoch=2)
    assert at.end_epoch(4) == pytest.approx(1.5)
    assert (at.epoch, at.step_in_epoch) == (0, 2)


def test_stopping_is_the_same_with_a_break_after_any_epoch() -> None:
    values = [0.5, 0.7, 0.7, 0.69, 0.9]
    for broken_after in range(len(values)):
        at, done = Position(), 0
        for number, value in enumerate(values):
            if number == broken_after:
                at = Position(**asdict(at))
            at.judge(RULE, {"val_top1": value})
            done += 1
            if at.is_stale(RULE):
                break
        assert done == 4, "two epochs after the best"


def test_creeping_up_by_less_than_min_delta_is_no_better_until_it_adds_up() -> None:
    at = Position()
    stale: list[int] = []
    for value in (0.5, 0.505, 0.511, 0.512):
        at.judge(RULE, {"val_top1": value})
        stale.append(at.stale_epochs)
    assert stale == [0, 1, 0, 1]


def test_of_a_loss_less_is_better() -> None:
    rule, at = EarlyStopping(metric="val_loss", patience=1), Position()
    at.judge(rule, {"val_loss": 1.0})
    at.judge(rule, {"val_loss": 0.5})
    assert at.stale_epochs == 0
    at.judge(rule, {"val_loss": 0.6})
    assert at.is_stale(rule)
