"""How a stream of shards is cut into windows, and these into the workers' batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.training.rows import Rows
from library.training.windows import Share, Window, cut_windows, window_rows, windows_of

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12)


def rows_of(windows: list[Window]) -> list[tuple[int, int]]:
    """Shard and position of every row, in order."""
    return [(shard, row) for window in windows for shard, low, high in window.parts for row in range(low, high)]


def dataset(counts: list[int], picture_bytes: float = 1.0) -> Rows:
    shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    total = len(shard)
    return Rows(
        "nowhere",
        tuple(f"part-{number}.parquet" for number in range(len(counts))),
        shard,
        np.arange(total, dtype=np.int32),
        np.zeros(total, np.int64),
        np.asarray([str(number) for number in range(total)], object),
        ("a", "b"),
        picture_bytes,
    )


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
        windows = windows_of(np.array(counts), order, first, last, shuffled=True, max_rows=max_rows)
        assert len(rows_of(windows)) == last - first == sum(window.keep for window in windows)
        assert all(window.keep <= max_rows for window in windows)
        found += rows_of(windows)
    assert sorted(found) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


def test_a_window_of_large_shards_holds_a_piece_of_each() -> None:
    windows = windows_of(np.array([1000, 1000, 500]), [2, 0, 1], 0, 2500, shuffled=True, max_rows=100)
    assert len(windows) == 25
    for window in windows:
        assert {shard: high - low for shard, low, high in window.parts} == pytest.approx({0: 40, 1: 40, 2: 20}, abs=1)


def test_larger_pictures_make_smaller_windows() -> None:
    assert window_rows(dataset([4], 1e6)) == 67
    assert window_rows(dataset([4], 1e12)) == 1


@given(COUNTS, st.integers(0, 100), st.integers(0, 100))
def test_a_cut_leaves_out_as_many_rows_as_asked_and_keeps_as_many(counts: list[int], skip: int, keep: int) -> None:
    total = sum(counts)
    whole = windows_of(np.array(counts), range(len(counts)), 0, total, shuffled=True, max_rows=7)
    windows = cut_windows(whole, skip, keep)
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
        windows = share.windows(7, epoch)
        assert sum(window.keep for window in windows) == share.steps * share.local
        assert share.windows(7, epoch, first_step=1) == cut_windows(windows, share.local, share.steps * share.local)
        found += rows_of(windows)
    assert len(found) == len(set(found)) == shares[0].steps * shares[0].batch_size
