"""Which pictures a step learns from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.training.order import batch_rows, epoch_order, steps_per_epoch

LABELS = np.array([0] * 90 + [1] * 9 + [2])


def test_an_epoch_takes_every_picture_once_and_another_epoch_in_another_order() -> None:
    first, second = (epoch_order(LABELS, 3, epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first.tolist() != second.tolist()


def test_the_order_hangs_on_seed_and_epoch_alone() -> None:
    assert epoch_order(LABELS, 3, 7).tolist() == epoch_order(LABELS.copy(), 3, 7).tolist()
    assert epoch_order(LABELS, 3, 7).tolist() != epoch_order(LABELS, 4, 7).tolist()


def test_balanced_sampling_takes_each_class_about_equally_often() -> None:
    drawn = np.concatenate([LABELS[epoch_order(LABELS, 0, epoch, balanced=True)] for epoch in range(30)])
    assert np.bincount(drawn) / len(drawn) == pytest.approx([1 / 3] * 3, abs=0.03)


@given(st.integers(1, 7), st.integers(1, 40))
def test_the_workers_parts_of_a_batch_are_the_batch_whatever_their_number(world_size: int, batch_size: int) -> None:
    order = epoch_order(LABELS, 0, 0)
    for step in range(steps_per_epoch(100, batch_size)):
        parts = [batch_rows(order, step, batch_size, rank, world_size) for rank in range(world_size)]
        assert np.concatenate(parts).tolist() == order[step * batch_size : (step + 1) * batch_size].tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
