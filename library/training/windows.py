"""A stream of shards cut into windows: rows that are read and shuffled together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WINDOW_SHARDS = 4


@dataclass(frozen=True)
class Window:
    """Rows that are read and shuffled together.

    Attributes:
        number: of the window in its worker's epoch; -1 where nothing is shuffled.
        parts: shard number, and first and last-but-one position among the rows of that shard that are used.
        skip: rows at the beginning, after the shuffle, that were learned from already.
        keep: rows after these that are given.
    """

    number: int
    parts: tuple[tuple[int, int, int], ...]
    skip: int
    keep: int


def windows_of(
    counts: NDArray[np.int64], order: Sequence[int], first: int, last: int, *, shuffled: bool
) -> list[Window]:
    """Cut positions `first` to `last` of the shards' rows, in `order` one after the other, into windows.

    Args:
        counts: rows of each shard.
        order: shard numbers.
        first: position in the concatenated rows.
        last: one past the end.
        shuffled: number the windows, so that each is shuffled in its own way.
    """
    parts: list[tuple[int, int, int]] = []
    at = 0
    for shard in order:
        low, high = max(first - at, 0), min(last - at, int(counts[shard]))
        if low < high:
            parts.append((int(shard), low, high))
        at += int(counts[shard])
    windows: list[Window] = []
    for begin in range(0, len(parts), _WINDOW_SHARDS):
        chosen = tuple(parts[begin : begin + _WINDOW_SHARDS])
        rows = sum(high - low for _, low, high in chosen)
        windows.append(Window(len(windows) if shuffled else -1, chosen, 0, rows))
    return windows


def cut_windows(windows: Sequence[Window], skip: int, keep: int) -> list[Window]:
    """Leave out the first `skip` rows, give the `keep` after them."""
    cut: list[Window] = []
    for window in windows:
        left_out = min(skip, window.keep)
        given = min(keep, window.keep - left_out)
        skip, keep = skip - left_out, keep - given
        if given:
            cut.append(dataclasses.replace(window, skip=left_out, keep=given))
    return cut
