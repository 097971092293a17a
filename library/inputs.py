"""From stored bytes to what a model sees: the one way that training, evaluation and serving take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from library import codec
from library.batch import run_step
from library.errors import BadPicture
from library.picture import Picture, Pixels
from library.pipeline import Pipeline
from library.steps.base import Step

_SCALES = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


@dataclass(frozen=True)
class InputPipeline:
    """What a model sees of a picture.

    Attributes:
        steps: filters and selectors, as the recipe has them.
        fit: filters that give every picture the model's size; skipped for one that has it.
        size: height and width in pixels.
        channels: of the result.
    """

    steps: Pipeline
    fit: Pipeline
    size: tuple[int, int]
    channels: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the other columns that the steps ask for, such as a mask's."""
        named = (cast(Any, step).columns() for step in self.steps.steps if hasattr(step, "columns"))
        return tuple(dict.fromkeys(name for names in named for name in names))

    def before_fit(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Pixels:
        """Decode and run `steps` only; between here and `fitted` training augments.

        Args:
            data: the encoded picture.
            limits: checked from the header, before anything is decoded.
            columns: `key`, `label` and whatever other columns a step asks for.

        Raises:
            BadPicture: what cannot be decoded; `dropped:REASON` where a selector drops it.
        """
        picture = _picture(data, limits, columns)
        self._run(self.steps.steps, picture)
        return picture.pixels

    def fitted(self, pixels: Pixels) -> Pixels:
        """Pixels of the model's size.

        Raises:
            BadPicture: `wrong_shape` where the pipeline gives another shape than the model takes.
        """
        if pixels.shape[:2] != self.size:
            pixels = self.fit.apply(pixels)
        if pixels.shape != (*self.size, self.channels):
            height, width = self.size
            raise BadPicture(
                "wrong_shape",
                f"the model takes {height}x{width}x{self.channels}, its input pipeline gave "
                f"{'x'.join(map(str, pixels.shape))}",
            )
        return np.ascontiguousarray(pixels)

    def prepare(self, data: bytes, limits: codec.Limits = codec.DEFAULT_LIMITS, /, **columns: Any) -> Pixels:
        """Bytes to what the model sees: height x width x channels; raises as `before_fit` and `fitted`."""
        return self.fitted(self.before_fit(data, limits, **columns))

    def prepare_pixels(self, pixels: Pixels, /, **columns: Any) -> Pixels:
        """As `prepare`, from a decoded picture."""
        picture = _picture(b"", codec.DEFAULT_LIMITS, columns, pixels)
        self._run(self.steps.steps, picture)
        return self.fitted(picture.pixels)

    def _run(self, steps: Sequence[Step], picture: Picture) -> None:
        for step in steps:
            reason = run_step(step, picture)
            if reason is not None:
                raise BadPicture(f"dropped:{reason}", f"the model's own selector '{step}' drops it")


def _picture(data: bytes, limits: codec.Limits, columns: Mapping[str, Any], pixels: Pixels | None = None) -> Picture:
    if pixels is None:
        header = codec.probe(data, limits)
    else:
        header = codec.Header("npy", pixels.shape[1], pixels.shape[0], pixels.shape[2], pixels.dtype.name)
    key, label = str(columns.get("key", "")), columns.get("label")
    picture = Picture(key, label, header, lambda: data, columns, limits)
    if pixels is not None:
        picture.replace(pixels)
    return picture


def stack(pictures: Sequence[Pixels]) -> NDArray[Any]:
    """Prepared pictures as one batch, N x height x width x channels; of several dtypes: float32 in 0 to 1."""
    if len({picture.dtype for picture in pictures}) == 1:
        return np.stack(pictures)
    return np.stack([scaled(picture) for picture in pictures])


def scaled(picture: Pixels) -> Pixels:
    """As float32 in 0 to 1, whatever the dtype."""
    return picture.astype(np.float32) / _SCALES[picture.dtype.name]
