"""How a stream of shards is cut into windows, and these into the workers' batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.training.rows import Rows
from library.training.windows import Group, Share, cut, groups_of, small_parts, window_rows

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12)


def rows_of(groups: list[Group], max_rows: int = 7) -> list[tuple[int, int]]:
    """Shard and position of every row, in order."""
    windows = [window for group in groups for window in group.windows(max_rows)]
    return [(shard, row) for window in windows for shard, low, high in window.parts for row in range(low, high)]


def dataset(counts: list[int], picture_bytes: float = 1.0) -> Rows:
    names = tuple(f"part-{number}.parquet" for number in range(len(counts)))
    return Rows("nowhere", names, np.asarray(counts), ("a", "b"), {"a": sum(counts), "b": 0}, picture_bytes)


@given(COUNTS, st.integers(1, 5), st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_workers_parts_are_all_rows_and_none_twice(
    counts: list[int], workers: int, max_rows: int, random: object
) -> None:
    order = list(range(len(counts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    total = sum(counts)
    found: list[tuple[int, int]] = []
    for rank in range(workers):
        first, last = total * rank // workers, total * (rank + 1) // workers
        groups = groups_of(np.array(counts), np.array(order), first, last, shuffled=True)
        windows = [window for group in groups for window in group.windows(max_rows)]
        assert sum(group.keep for group in groups) == sum(window.keep for window in windows) == last - first
        assert all(window.keep <= max_rows for window in windows)
        assert len({window.number for window in windows}) == len(windows)
        found += rows_of(groups, max_rows)
    assert sorted(found) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


def test_a_window_of_large_shards_holds_a_piece_of_each() -> None:
    (group,) = groups_of(np.array([1000, 1000, 500]), np.array([2, 0, 1]), 0, 2500, shuffled=True)
    windows = list(group.windows(100))
    assert len(windows) == 25
    for window in windows:
        assert {shard: high - low for shard, low, high in window.parts} == pytest.approx({0: 40, 1: 40, 2: 20}, abs=1)


def test_larger_pictures_make_smaller_windows() -> None:
    assert window_rows(dataset([4], 1e6)) == 67
    assert window_rows(dataset([4], 1e12)) == 1


@given(COUNTS.filter(sum), st.integers(1, 64))
def test_small_parts_are_all_rows_and_enough_for_every_worker(counts: list[int], workers: int) -> None:
    parts = small_parts(dataset(counts), workers)
    found = [(shard, row) for shard, low, high in parts for row in range(low, high)]
    assert found == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert len(parts) >= min(sum(counts), workers)


@given(COUNTS, st.integers(0, 100), st.integers(0, 100), st.integers(1, 9))
def test_a_cut_leaves_out_as_many_rows_as_asked_and_keeps_as_many(
    counts: list[int], skip: int, keep: int, max_rows: int
) -> None:
    total = sum(counts)
    whole = groups_of(np.array(counts), np.arange(len(counts)), 0, total, shuffled=True)
    windows = [window for group in cut(whole, skip, keep) for window in group.windows(max_rows)]
    assert sum(window.keep for window in windows) == min(keep, max(0, total - skip))
    for window in windows:
        assert window.skip + window.keep <= sum(high - low for _, low, high in window.parts)


@given(COUNTS.filter(sum), st.integers(1, 5), st.integers(1, 20), st.integers(0, 3))
def test_workers_take_every_batch_whole_also_where_it_does_not_divide(
    counts: list[int], workers: int, batch_size: int, epoch: int
) -> None:
    rows = dataset(counts)
    shares = [Share(rows, min(batch_size, len(rows)), rank, workers) for rank in range(workers)]
    assert sum(share.local for share in shares) == shares[0].batch_size
    assert max(share.local for share in shares) - min(share.local for share in shares) <= 1
    found: list[tuple[int, int]] = []
    for share in shares:
        groups = share.groups(7, epoch)
        assert sum(group.keep for group in groups) == share.steps * share.local
        assert share.groups(7, epoch, 1) == cut(groups, share.local, share.steps * share.local)
        assert share.groups(7, epoch, 0, 1) == cut(groups, 0, share.local)
        found += rows_of(groups)
    assert len(found) == len(set(found)) == shares[0].steps * shares[0].batch_size


def test_rows_that_are_used_take_a_bit_each_and_are_found_in_their_shards() -> None:
    rows = dataset([5, 0, 12, 3])
    used = np.zeros(20, bool)
    used[[0, 4, 5, 9, 16, 17, 19]] = True
    some = rows.only(used, [7, 0])
    assert len(some) == 7
    assert some.used is not None
    assert some.used.nbytes == 3
    assert some.counts.tolist() == [2, 0, 3, 2]
    assert [some.positions(shard).tolist() for shard in range(4)] == [[0, 4], [], [0, 4, 11], [0, 2]]
