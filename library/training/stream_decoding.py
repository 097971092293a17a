"""The pictures of a stream, window by window: read, shuffled, decoded and augmented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.augmentation import Augmenter
from library.errors import BadPicture, StriateError
from library.inputs import InputPipeline, stack
from library.picture import Pixels
from library.randomness import generator
from library.training.rows import Rows, read_pictures, rejected_text
from library.training.windows import Window

# Decoded bytes that are given at once: a window's pictures may be 20 times larger decoded than stored.
_BLOCK_BYTES = 16 * 2**20
_USED = -1


class WindowDecoder:
    """Gives the rows of one window after another.

    Args:
        rows: of the dataset.
        inputs: what the model sees.
        augmenter: None for none.
        seed: of the order within a window.
        epoch: from 0.
        rank: of the worker that learns from them.
    """

    def __init__(
        self, rows: Rows, inputs: InputPipeline, augmenter: Augmenter | None, seed: int, epoch: int, rank: int
    ) -> None:
        self._rows, self._inputs, self._augmenter = rows, inputs, augmenter
        self._seed, self._epoch, self._rank = seed, epoch, rank

    def blocks(self, window: Window) -> Iterator[dict[str, NDArray[Any]]]:
        """The window's rows in order, some megabytes at a time.

        A picture that cannot be used is replaced by the one before it, so that each worker has as many.

        Returns:
            Columns `picture`, `label`, `key`; `rejected`, the reason where the picture is such a stand-in, else empty;
            and `lost`, the class id of what it stands for, else -1.

        Raises:
            StriateError: when nothing in the window can be used.
        """
        waiting: list[_Row] = []
        size = 0
        for row in self._with_stand_ins(self._chosen(window)):
            waiting.append(row)
            size += row[0].nbytes
            if size >= _BLOCK_BYTES:
                yield _block(waiting)
                waiting, size = [], 0
        if waiting:
            yield _block(waiting)

    def _chosen(self, window: Window) -> list[tuple[dict[str, Any], int]]:
        """Stored pictures and their labels, in the order in which they are learned from."""
        taken: list[tuple[dict[str, Any], int]] = []
        for shard, low, high in window.parts:
            mine = self._rows.take(np.flatnonzero(self._rows.shard == shard)[low:high])
            records = read_pictures(self._rows, shard, mine.row, self._inputs.columns)
            taken += zip((dict(record) for record in records), mine.labels.tolist(), strict=True)
        order = np.arange(len(taken))
        if window.number >= 0:
            order = generator("window", self._seed, self._epoch, self._rank, window.number).permutation(len(taken))
        return [taken[position] for position in order[window.skip : window.skip + window.keep]]

    def _with_stand_ins(self, taken: Sequence[tuple[dict[str, Any], int]]) -> Iterator[_Row]:
        last: _Row | None = None
        early: list[tuple[str, int]] = []  # rejected before there was any picture to stand in for them
        detail = ""
        for record, label in taken:
            others = {name: value for name, value in record.items() if name != "bytes"}
            try:
                pixels = self._inputs.before_fit(record["bytes"], **others)
                if self._augmenter is not None:
                    pixels = self._augmenter.apply(pixels, self._epoch, record["key"])
                last = (self._inputs.fitted(pixels), label, record["key"], "", _USED)
            except BadPicture as bad:
                if last is None:
                    early.append((bad.reason, label))
                    detail = bad.detail
                else:
                    yield (*last[:3], bad.reason, label)
                continue
            for reason, lost in early:
                yield (*last[:3], reason, lost)
            early = []
            yield last
        if early:
            names = ", ".join(sorted({self._rows.classes[label] for _, label in early}))
            reasons = rejected_text(Counter(reason for reason, _ in early))
            raise StriateError(
                f"{self._rows.dataset}: none of {len(early):,} pictures of {names} that lie together can be used: "
                f"{reasons}; the last one: {detail}"
            )


#: Pixels, label, key, reason and the class of what it stands for.
_Row = tuple[Pixels, int, str, str, int]


def _block(rows: Sequence[_Row]) -> dict[str, NDArray[Any]]:
    return {
        "picture": stack([row[0] for row in rows]),
        "label": np.asarray([row[1] for row in rows], np.int64),
        "key": np.asarray([row[2] for row in rows], object),
        "rejected": np.asarray([row[3] for row in rows], object),
        "lost": np.asarray([row[4] for row in rows], np.int64),
    }
