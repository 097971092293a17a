"""How a stream of shards is cut into windows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from library.training.windows import cut_windows, windows_of

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12)


def rows_of(windows: list) -> list[tuple[int, int]]:
    """Shard and position of every row, in order."""
    return [(shard, row) for window in windows for shard, low, high in window.parts for row in range(low, high)]


@given(COUNTS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_workers_parts_are_all_rows_and_none_twice(counts: list[int], workers: int, random: object) -> None:
    order = list(range(len(counts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    total = sum(counts)
    found: list[tuple[int, int]] = []
    for rank in range(workers):
        first, last = total * rank // workers, total * (rank + 1) // workers
        windows = windows_of(np.array(counts), order, first, last, shuffled=True)
        assert len(rows_of(windows)) == last - first == sum(window.keep for window in windows)
        found += rows_of(windows)
    assert sorted(found) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


@given(COUNTS, st.integers(0, 100), st.integers(0, 100))
def test_a_cut_leaves_out_as_many_rows_as_asked_and_keeps_as_many(counts: list[int], skip: int, keep: int) -> None:
    total = sum(counts)
    windows = cut_windows(windows_of(np.array(counts), range(len(counts)), 0, total, shuffled=True), skip, keep)
    assert sum(window.keep for window in windows) == min(keep, max(0, total - skip))
    for window in windows:
        assert window.skip + window.keep <= sum(high - low for _, low, high in window.parts)
