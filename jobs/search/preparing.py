"""Model inputs of many pipelines from pictures that are decoded once; a common beginning is computed once. No torch."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture, StriateError
from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline, scaled
from library.steps.base import Filter
from library.training.in_memory import PackedPictures

#: Pictures on which the time of a pipeline is measured, and how often.
_TIMED_PICTURES, _TIMINGS = 24, 3


class FilterFailed(StriateError):
    """A filter cannot take these pictures, so that its candidate is out; says which filter, and why."""


class Preparer:
    """Computes the inputs of one pipeline after another.

    What the beginning of a pipeline returned is kept for others that begin alike, up to a limit; the pictures that were
    used longest ago are dropped first.

    Args:
        pictures: decoded pictures, as stored.
        most_bytes: limit of what is kept.
    """

    def __init__(self, pictures: PackedPictures, most_bytes: int = 512 * 2**20) -> None:
        self._pictures, self._most_bytes = pictures, most_bytes
        self._kept: OrderedDict[tuple[bytes, str], list[Pixels]] = OrderedDict()
        self._bytes = 0
        self.computed = 0  #: filters that were computed, each for a whole set of pictures

    def pack(self, inputs: InputPipeline, rows: NDArray[np.int64], *, fitted: bool = True) -> PackedPictures:
        """Returns the inputs of some pictures, in the order of `rows`.

        Args:
            inputs: filters only; `fitted` says whether their results get the model's size.
            rows: numbers of the pictures.
            fitted: as in `library.training.in_memory.decode_rows`.

        Raises:
            FilterFailed: a filter cannot take a picture.
        """
        pixels = self._filtered(inputs.steps, rows)
        if fitted:
            try:
                pixels = [inputs.fitted(picture) for picture in pixels]
            except BadPicture as bad:
                raise FilterFailed(f"{inputs.whole}: {bad.detail}") from bad
        if len({picture.dtype for picture in pixels}) > 1:
            pixels = [scaled(picture) for picture in pixels]
        data = self._pictures
        return PackedPictures.pack(pixels, data.labels[rows].tolist(), data.keys[rows].tolist(), data.rejected.copy())

    def milliseconds(self, filters: Pipeline, rows: NDArray[np.int64]) -> float:
        """Returns the time that filters take for a picture of the first rows: the shortest of three measurements.

        Raises:
            FilterFailed: a filter cannot take a picture.
        """
        if not filters.steps:
            return 0.0
        pixels = [self._pictures[row] for row in rows[:_TIMED_PICTURES].tolist()]
        best = float("inf")
        for _ in range(_TIMINGS):
            start = time.perf_counter()
            filtered = pixels
            for step in filters.steps:
                filtered = _apply(cast(Filter, step), filtered)
            best = min(best, time.perf_counter() - start)
        return 1000 * best / max(len(pixels), 1)

    def _filtered(self, pipeline: Pipeline, rows: NDArray[np.int64]) -> list[Pixels]:
        which = rows.tobytes()
        steps = pipeline.steps
        known, pixels = 0, None
        for length in range(len(steps), 0, -1):
            key = which, str(Pipeline(tuple(steps[:length])))
            if key in self._kept:
                self._kept.move_to_end(key)
                known, pixels = length, self._kept[key]
                break
        if pixels is None:
            pixels = [self._pictures[row] for row in rows.tolist()]
        for length in range(known + 1, len(steps) + 1):
            pixels = _apply(cast(Filter, steps[length - 1]), pixels)
            self.computed += 1
            self._keep((which, str(Pipeline(tuple(steps[:length])))), pixels)
        return pixels

    def _keep(self, key: tuple[bytes, str], pixels: list[Pixels]) -> None:
        size = _size(pixels)
        if size > self._most_bytes:
            return
        self._kept[key] = pixels
        self._bytes += size
        while self._bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(pixels: Sequence[Pixels]) -> int:
    return sum(picture.nbytes for picture in pixels)


def _apply(step: Filter, pixels: Sequence[Pixels]) -> list[Pixels]:
    try:
        return [step(picture) for picture in pixels]
    except BadPicture as bad:
        raise FilterFailed(f"{step}: {bad.detail}") from bad
    except Exception as error:
        # A user's own step, or one that these pictures do not suit: it is out of the race, with the reason.
        raise FilterFailed(f"{step}: {type(error).__name__}: {error}") from error
