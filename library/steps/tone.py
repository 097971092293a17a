"""Filters of tone: negative, thresholds, contrast and brightness curves.

Each channel is processed separately, so hues may change. Values range from 0 to white: 255 for uint8, 65535 for uint16,
nominally 1.0 for float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from library.imaging.picture import Pixels
from library.steps.arrays import (
    Fraction,
    OddSize,
    by_channel_groups,
    each_channel,
    histogram,
    looked_up,
    quantised,
    ramp,
    require_finite,
    through_16_bits,
    white,
)
from library.steps.base import register


@register("filter", still=True)
class Invert:
    """Make the negative: white minus each value, including alpha."""

    def __call__(self, pixels: Pixels) -> Pixels:
        if pixels.dtype == np.float32:
            return np.subtract(white(pixels.dtype), pixels, dtype=np.float32)
        return np.invert(pixels)


@register("filter", still=True)
class Binarize:
    """Make black and white: each value above a threshold becomes white, any other 0.

    - `fixed`: one threshold for all pictures.
    - `otsu`: for each channel the threshold that best separates its values into two classes (Otsu 1979), over 256
      values for uint8 and 65,536 otherwise; float32 is quantised over its own range first. A flat channel becomes 0.
    - `adaptive`: for each pixel the mean of the window around it minus `offset` (OpenCV's `ADAPTIVE_THRESH_MEAN_C`,
      with a replicated border); for uneven light.

    Raises:
        BadPicture: `not_finite`, for `otsu` and `adaptive`.
    """

    method: Annotated[Literal["fixed", "otsu", "adaptive"], Field(description="how to choose the threshold")] = "otsu"
    threshold: Annotated[Fraction | None, Field(description="for fixed: fraction of white (default 0.5)")] = None
    size: Annotated[OddSize | None, Field(description="for adaptive: side of the window in pixels, odd (51)")] = None
    offset: Annotated[
        float | None,
        Field(ge=-1, le=1, description="for adaptive: subtracted from the mean, as a fraction of white (0.05)"),
    ] = None

    @model_validator(mode="after")
    def _fill_in(self) -> Binarize:
        defaults = {"threshold": ("fixed", 0.5), "size": ("adaptive", 51), "offset": ("adaptive", 0.05)}
        for name, (method, default) in defaults.items():
            if method != self.method and getattr(self, name) is not None:
                raise ValueError(f'\'{name}\' has no effect with method="{self.method}"; it belongs to "{method}"')
            if method == self.method and getattr(self, name) is None:
                object.__setattr__(self, name, default)
        return self

    def __call__(self, pixels: Pixels) -> Pixels:
        top = white(pixels.dtype)
        if self.method == "fixed":
            level = cast(float, self.threshold) * top
            # OpenCV itself rounds the threshold down only for uint8.
            level = level if pixels.dtype == np.float32 else float(np.floor(level))
            return by_channel_groups(lambda group: cv2.threshold(group, level, top, cv2.THRESH_BINARY)[1], pixels)
        require_finite(pixels)
        if self.method == "otsu":
            return each_channel(_otsu_binarized, pixels)
        size, offset = cast(int, self.size), cast(float, self.offset)
        means = by_channel_groups(
            lambda group: cv2.boxFilter(group, cv2.CV_32F, (size, size), borderType=cv2.BORDER_REPLICATE), pixels
        )
        return np.multiply(pixels > means - np.float32(offset * top), top, dtype=pixels.dtype)


@register("filter", still=True)
class Equalize:
    """Equalize each channel's histogram: spread the values so that all levels are used about equally.

    float32 is quantised to 65,536 levels over its own range and stays in that range. A flat channel is unchanged.

    Raises:
        BadPicture: `not_finite`.
    """

    def __call__(self, pixels: Pixels) -> Pixels:
        return each_channel(_equalized, pixels)


@register("filter", still=True)
class Clahe:
    """Equalize the histogram tile by tile with limited contrast (CLAHE).

    Zuiderveld 1994 (Graphics Gems IV), in OpenCV's implementation. float32 is quantised to 65,536 levels over its own
    range and stays in that range; a flat float32 channel is unchanged.

    Raises:
        BadPicture: `not_finite`.
    """

    clip_limit: Annotated[
        float, Field(gt=0, le=1000, description="limit of one level's count, in multiples of the mean count")
    ] = 2.0
    tiles: Annotated[int, Field(ge=1, le=64, description="tiles along each side of the picture")] = 8

    def __call__(self, pixels: Pixels) -> Pixels:
        apply = cv2.createCLAHE(self.clip_limit, (self.tiles, self.tiles)).apply

        def plane(values: Pixels) -> Pixels:
            return through_16_bits(apply, values) if values.dtype == np.float32 else apply(values)

        return each_channel(plane, pixels)


@register("filter", still=True)
class Gamma:
    """Apply a gamma curve, `white * (value / white) ** gamma`: above 1 darkens the midtones, below 1 lightens them.

    Negative float values become 0; values above 1 follow the same curve (to infinity beyond float32).
    """

    gamma: Annotated[float, Field(gt=0, le=100, description="the exponent; 1 changes nothing")]

    def __call__(self, pixels: Pixels) -> Pixels:
        if pixels.dtype == np.float32:
            with np.errstate(over="ignore"):
                return np.power(np.maximum(pixels, 0), np.float32(self.gamma), dtype=np.float32)
        return looked_up(pixels, _gamma_table(self.gamma, pixels.dtype))


@register("filter", still=True)
class ContrastStretch:
    """Stretch each channel linearly: the low percentile becomes 0, the high one white, the rest is clipped.

    With 2 and 98 it is remote sensing's "2% linear stretch". The p-th percentile is the least value that at least p
    percent of the pixels do not exceed. Float results are within 0..1. A channel with equal percentiles is unchanged.

    Raises:
        BadPicture: `not_finite`.
    """

    low_percentile: Annotated[float, Field(ge=0, lt=100, description="this percentile becomes 0")] = 2.0
    high_percentile: Annotated[float, Field(gt=0, le=100, description="this percentile becomes white")] = 98.0

    @model_validator(mode="after")
    def _in_order(self) -> ContrastStretch:
        if self.low_percentile >= self.high_percentile:
            raise ValueError(f"'low_percentile' should be below 'high_percentile' ({self.high_percentile})")
        return self

    def __call__(self, pixels: Pixels) -> Pixels:
        return each_channel(self._stretched, pixels)

    def _stretched(self, plane: Pixels) -> Pixels:
        if plane.dtype == np.float32:
            require_finite(plane)
            percentiles = (self.low_percentile, self.high_percentile)
            low, high = np.percentile(plane.astype(np.float64), percentiles, method="inverted_cdf")
            if low == high:
                return plane
            return np.clip((plane - low) / (high - low), 0, 1).astype(np.float32)
        below = histogram(plane).cumsum()
        shares = np.asarray([self.low_percentile, self.high_percentile]) * (plane.size / 100)
        low, high = below.searchsorted(np.clip(shares, 1, plane.size))
        if low == high:
            return plane
        table = np.clip((ramp(plane.dtype) - low) * (white(plane.dtype) / (high - low)), 0, white(plane.dtype))
        return looked_up(plane, np.rint(table).astype(plane.dtype))


def _otsu_binarized(plane: Pixels) -> Pixels:
    if plane.dtype == np.float32:
        levels, _, _ = quantised(plane)
        return np.asarray(levels > _otsu_threshold(levels), np.float32)
    return np.multiply(plane > _otsu_threshold(plane), white(plane.dtype), dtype=plane.dtype)


def _otsu_threshold(plane: Pixels) -> int:
    """The largest value of the lower class, chosen to maximize the variance between the two classes."""
    counts = histogram(plane)
    below = counts.cumsum()
    above = plane.size - below
    moments = (counts * ramp(plane.dtype)).cumsum()
    both = (below > 0) & (above > 0)
    if not both.any():
        return int(plane.max())
    distance = moments[both] * plane.size - moments[-1] * below[both]
    variance = distance**2 / (below[both].astype(np.float64) * above[both])
    return int(np.flatnonzero(both)[variance.argmax()])


def _equalized(plane: Pixels) -> Pixels:
    if plane.dtype == np.uint8:
        return np.asarray(cv2.equalizeHist(plane))
    if plane.dtype == np.float32:
        return through_16_bits(_equalized, plane)
    below = histogram(plane).cumsum()
    least = below[plane.min()]
    if least == plane.size:
        return plane
    table = np.maximum(below - least, 0) * (65535 / (plane.size - least))
    return looked_up(plane, np.rint(table).astype(np.uint16))


@lru_cache(maxsize=16)
def _gamma_table(gamma: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    top = white(dtype)
    return np.rint(top * (ramp(dtype) / top) ** gamma).astype(dtype)
