"""Model inputs of many pipelines from pictures that are decoded once; a common prefix is computed once. No torch."""

from __future__ import annotations

import textwrap
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from jobs.search.prefix_files import PrefixFiles
from library.choosing.filter_search.space import Candidate
from library.errors import BadPicture, StorageError, StriateError
from library.imaging import codec
from library.imaging.picture import Pixels
from library.pipeline import Pipeline
from library.pipeline.inputs import InputPipeline, scaled
from library.steps.base import Filter
from library.steps.plugins import used_by
from library.training.in_memory import PackedPictures

#: Pictures on which the time of a pipeline is measured, and how often.
_TIMED_PICTURES, _TIMINGS = 24, 3
#: Of a step's text in an error.
_MOST_CHARACTERS = 120


class FilterFailed(StriateError):
    """A filter cannot take these pictures, so that its candidate is out; names the filter and the reason."""


@dataclass(frozen=True, kw_only=True)
class StoredInputs(InputPipeline):
    """Returns pictures as they are stored, since filters come first, but rejects what the recipe itself cannot take.

    Attributes:
        inputs: of the recipe's model; a step that may drop pictures is not among them.
        by_kind: whether one picture of each kind (shape, dtype, and whether all values are finite) is tried, as that is
            all that our own steps depend on. A plugin's step may refuse any picture, so each is tried.
    """

    inputs: InputPipeline
    by_kind: bool
    _refused: dict[tuple[tuple[int, ...], str, bool], BadPicture | None] = field(
        default_factory=dict[tuple[tuple[int, ...], str, bool], BadPicture | None], compare=False, repr=False
    )

    @classmethod
    def of(cls, inputs: InputPipeline, *, augmented: bool) -> StoredInputs:
        """Returns the inputs for pictures of one role.

        Args:
            inputs: of the recipe's model.
            augmented: whether the recipe augments the pictures before it fits them, which may give them a size.
        """
        fit = Pipeline.parse(f'resize([{inputs.size[0]}, {inputs.size[1]}], mode="exact")') if augmented else inputs.fit
        inputs = replace(inputs, fit=fit)
        return cls(Pipeline(), Pipeline(), (0, 0), 0, inputs=inputs, by_kind=not used_by(inputs.whole.steps))

    def before_fit(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Pixels:
        """Returns the stored pixels; raises BadPicture where they cannot be decoded, or the recipe cannot take them."""
        pixels = super().before_fit(data, limits, **columns)
        is_finite = pixels.dtype.kind != "f" or bool(np.isfinite(pixels).all())
        kind = pixels.shape, pixels.dtype.name, is_finite
        if self.by_kind and kind in self._refused:
            bad = self._refused[kind]
        else:
            bad = self._refused[kind] = self._refusal(pixels)
        if bad is not None:
            raise BadPicture(bad.reason, bad.detail)
        return pixels

    def _refusal(self, pixels: Pixels) -> BadPicture | None:
        try:
            self.inputs.prepare_pixels(pixels)
        except BadPicture as bad:
            return bad
        return None


@dataclass(frozen=True)
class _Kept:
    """What the prefix of a pipeline gave, and the seconds to compute it from what has a file."""

    pixels: list[Pixels]
    seconds: float


class Preparer:
    """Computes the inputs of one pipeline after another.

    What the prefix of a pipeline returned is kept for others that begin alike, up to a limit; the pictures that were
    used longest ago are dropped first. What took long is also written to a file, which others read.

    Args:
        pictures: decoded pictures, as stored.
        most_bytes: limit of what is kept in memory.
        files: of prefixes, shared with other workers; None for none.
    """

    def __init__(
        self, pictures: PackedPictures, most_bytes: int = 512 * 2**20, files: PrefixFiles | None = None
    ) -> None:
        self._pictures, self._most_bytes, self._files = pictures, most_bytes, files
        self._kept: OrderedDict[tuple[bytes, str], _Kept] = OrderedDict()
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
                raise FilterFailed(f"{_short(inputs.whole)}: {bad.detail}") from bad
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
        prefixes = [str(Pipeline(tuple(pipeline.steps[: length + 1]))) for length in range(len(pipeline.steps))]
        known, start = self._longest_known(which, rows, prefixes)
        if start is None:
            start = _Kept([self._pictures[row] for row in rows.tolist()], 0.0)
        pixels, seconds = start.pixels, start.seconds
        for step, prefix in zip(pipeline.steps[known:], prefixes[known:], strict=True):
            begun = time.perf_counter()
            pixels = _apply(cast(Filter, step), pixels)
            seconds += time.perf_counter() - begun
            self.computed += 1
            if self._files is not None and self._files.is_worth_a_file(seconds, _size(pixels)):
                self._files.write(self._files.name(rows, prefix), pixels)
                seconds = 0.0
            self._keep((which, prefix), _Kept(pixels, seconds))
        return pixels

    def _longest_known(
        self, which: bytes, rows: NDArray[np.int64], prefixes: Sequence[str]
    ) -> tuple[int, _Kept | None]:
        """Returns the length of the longest prefix that is in memory or in a file, and what it gave."""
        written = None
        for length in range(len(prefixes), 0, -1):
            key = which, prefixes[length - 1]
            if key in self._kept:
                self._kept.move_to_end(key)
                return length, self._kept[key]
            if self._files is None:
                continue
            # Listed once, not asked for each prefix: in a store each question takes as long as a cheap filter.
            written = self._files.names() if written is None else written
            name = self._files.name(rows, prefixes[length - 1])
            pixels = self._files.read(name, len(rows)) if name in written else None
            if pixels is not None:
                self._keep(key, _Kept(pixels, 0.0))
                return length, _Kept(pixels, 0.0)
        return 0, None

    def _keep(self, key: tuple[bytes, str], kept: _Kept) -> None:
        size = _size(kept.pixels)
        if size > self._most_bytes:
            return
        self._kept[key] = kept
        self._bytes += size
        while self._bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest.pixels)


def _size(pixels: Sequence[Pixels]) -> int:
    return sum(picture.nbytes for picture in pixels)


def _apply(step: Filter, pixels: Sequence[Pixels]) -> list[Pixels]:
    try:
        return [step(picture) for picture in pixels]
    except BadPicture as bad:
        raise FilterFailed(f"{_short(step)}: {bad.detail}") from bad
    except (MemoryError, StorageError):  # of this moment: a resumed search tries again
        raise
    except Exception as error:
        # A user's own step, or one that these pictures do not suit: it is out of the race, with the reason.
        raise FilterFailed(f"{_short(step)}: {type(error).__name__}: {error}") from error


def _short(steps: Pipeline | Filter) -> str:
    """Returns the text of steps for an error: of a kernel only its first number."""
    return textwrap.shorten(Candidate(str(steps)).label, _MOST_CHARACTERS, placeholder=" ...")
