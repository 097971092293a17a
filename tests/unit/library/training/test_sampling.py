"""The order of an epoch, and how a stream of shards is divided into windows and among workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.training.rows import Rows
from library.training.sampling import (
    Group,
    WorkerShare,
    batch_rows,
    epoch_order,
    make_groups,
    slice_groups,
    small_parts,
    steps_per_epoch,
    window_rows,
)

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12)
LABELS = np.array([0] * 90 + [1] * 9 + [2])


def test_each_epoch_takes_every_picture_once_in_a_new_order() -> None:
    first, second = (epoch_order(LABELS, 3, epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first.tolist() != second.tolist()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch_order(LABELS, 3, 7).tolist() == epoch_order(LABELS.copy(), 3, 7).tolist()
    assert epoch_order(LABELS, 3, 7).tolist() != epoch_order(LABELS, 4, 7).tolist()


def test_balanced_sampling_takes_classes_about_equally_often() -> None:
    drawn = np.concatenate([LABELS[epoch_order(LABELS, 0, epoch, balanced=True)] for epoch in range(30)])
    assert np.bincount(drawn) / len(drawn) == pytest.approx([1 / 3] * 3, abs=0.03)


@given(st.integers(1, 7), st.integers(1, 40))
def test_the_workers_parts_of_a_batch_add_up_for_any_number_of_workers(world_size: int, batch_size: int) -> None:
    order = epoch_order(LABELS, 0, 0)
    for step in range(steps_per_epoch(100, batch_size)):
        parts = [batch_rows(order, step, batch_size, rank, world_size) for rank in range(world_size)]
        assert np.concatenate(parts).tolist() == order[step * batch_size : (step + 1) * batch_size].tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def rows_of(groups: list[Group], max_rows: int = 7) -> list[tuple[int, int]]:
    """The shard and position of every row, in order."""
    windows = [window for group in groups for window in group.windows(max_rows)]
    return [(shard, row) for window in windows for shard, low, high in window.parts for row in range(low, high)]


def dataset(counts: list[int], picture_bytes: float = 1.0) -> Rows:
    names = tuple(f"part-{number}.parquet" for number in range(len(counts)))
    return Rows("nowhere", names, np.asarray(counts), ("a", "b"), {"a": sum(counts), "b": 0}, picture_bytes)


@given(COUNTS, st.integers(1, 5), st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_workers_parts_hold_every_row_exactly_once(
    counts: list[int], workers: int, max_rows: int, random: object
) -> None:
    order = list(range(len(counts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    total = sum(counts)
    positions: list[tuple[int, int]] = []
    for rank in range(workers):
        first, last = total * rank // workers, total * (rank + 1) // workers
        groups = make_groups(np.array(counts), np.array(order), first, last, shuffled=True)
        windows = [window for group in groups for window in group.windows(max_rows)]
        assert sum(group.keep for group in groups) == sum(window.keep for window in windows) == last - first
        assert all(window.keep <= max_rows for window in windows)
        assert len({window.number for window in windows}) == len(windows)
        positions += rows_of(groups, max_rows)
    assert sorted(positions) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


def test_a_window_of_large_shards_holds_a_piece_of_each_shard() -> None:
    (group,) = make_groups(np.array([1000, 1000, 500]), np.array([2, 0, 1]), 0, 2500, shuffled=True)
    windows = list(group.windows(100))
    assert len(windows) == 25
    for window in windows:
        assert {shard: high - low for shard, low, high in window.parts} == pytest.approx({0: 40, 1: 40, 2: 20}, abs=1)


def test_larger_pictures_make_smaller_windows() -> None:
    assert window_rows(dataset([4], 1e6)) == 67
    assert window_rows(dataset([4], 1e12)) == 1


@given(COUNTS.filter(sum), st.integers(1, 64))
def test_small_parts_hold_every_row_and_suffice_for_all_workers(counts: list[int], workers: int) -> None:
    parts = small_parts(dataset(counts), workers)
    positions = [(shard, row) for shard, low, high in parts for row in range(low, high)]
    assert positions == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert len(parts) >= min(sum(counts), workers)


@given(COUNTS, st.integers(0, 100), st.integers(0, 100), st.integers(1, 9))
def test_a_slice_skips_and_keeps_the_given_numbers_of_rows(
    counts: list[int], skip: int, keep: int, max_rows: int
) -> None:
    total = sum(counts)
    whole = make_groups(np.array(counts), np.arange(len(counts)), 0, total, shuffled=True)
    windows = [window for group in slice_groups(whole, skip, keep) for window in group.windows(max_rows)]
    assert sum(window.keep for window in windows) == min(keep, max(0, total - skip))
    for window in windows:
        assert window.skip + window.keep <= sum(high - low for _, low, high in window.parts)


@given(COUNTS.filter(sum), st.integers(1, 5), st.integers(1, 20), st.integers(0, 3))
def test_workers_share_every_batch_even_if_it_does_not_divide_evenly(
    counts: list[int], workers: int, batch_size: int, epoch: int
) -> None:
    rows = dataset(counts)
    shares = [WorkerShare(rows, min(batch_size, len(rows)), rank, workers) for rank in range(workers)]
    assert sum(share.local for share in shares) == shares[0].batch_size
    assert max(share.local for share in shares) - min(share.local for share in shares) <= 1
    positions: list[tuple[int, int]] = []
    for share in shares:
        groups = share.groups(7, epoch)
        assert sum(group.keep for group in groups) == share.steps * share.local
        assert share.groups(7, epoch, 1) == slice_groups(groups, share.local, share.steps * share.local)
        assert share.groups(7, epoch, 0, 1) == slice_groups(groups, 0, share.local)
        positions += rows_of(groups)
    assert len(positions) == len(set(positions)) == shares[0].steps * shares[0].batch_size


def test_selected_rows_take_a_bit_each_and_know_their_shards() -> None:
    rows = dataset([5, 0, 12, 3])
    used = np.zeros(20, bool)
    used[[0, 4, 5, 9, 16, 17, 19]] = True
    some = rows.only(used, [7, 0])
    assert len(some) == 7
    assert some.used is not None
    assert some.used.nbytes == 3
    assert some.counts.tolist() == [2, 0, 3, 2]
    assert [some.positions(shard).tolist() for shard in range(4)] == [[0, 4], [], [0, 4, 11], [0, 2]]
