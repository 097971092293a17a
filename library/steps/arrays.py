"""Helpers of filters and augmentations: channel groups, value ranges, saturating conversions, borders, checks.

Pixels are height x width x channels of uint8, uint16 or float32, unless a function says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, cast

import cv2
import numpy as np
import pydantic
from numpy.typing import DTypeLike, NDArray

from library.errors import BadPicture
from library.imaging.picture import Pixels

#: What a filter sees outside the picture, by OpenCV's names: `gfedcb|abcdefgh|gfedcba`, `fedcba|abcdefgh|hgfedcb`,
#: `aaaaaa|abcdefgh|hhhhhhh`, `000000|abcdefgh|0000000`.
Border: TypeAlias = Literal["reflect_101", "reflect", "replicate", "zeros"]

BORDER_CODES: dict[str, int] = {
    "reflect_101": cv2.BORDER_REFLECT_101,
    "reflect": cv2.BORDER_REFLECT,
    "replicate": cv2.BORDER_REPLICATE,
    "zeros": cv2.BORDER_CONSTANT,
}


def _checked_fill(value: Any) -> Any:
    if value == "constant":
        return 0.0
    if isinstance(value, str):
        valid = value in _FILL_CODES
    else:
        valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    if not valid:
        choices = ", ".join(f'"{name}"' for name in _FILL_CODES)
        raise ValueError(f"should be a constant from 0 to 1 (a fraction of white), or one of {choices}")
    return value


_FILL_CODES = {"edge": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT, "wrap": cv2.BORDER_WRAP}

#: What an augmentation puts outside the picture: a constant (a fraction of white; "constant" means 0), or, by the
#: names of Keras, "edge" `aaaaaa|abcdefgh|hhhhhhh`, "reflect" `fedcba|abcdefgh|hgfedcb`, "wrap"
#: `cdefgh|abcdefgh|abcdefg`.
Fill: TypeAlias = Annotated[float | Literal["edge", "reflect", "wrap"], pydantic.BeforeValidator(_checked_fill)]

#: OpenCV treats more channels than this as a third dimension, which its filters do not accept.
MAX_CV_CHANNELS = 128


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"should be odd, so that the window has a middle pixel; try {value - 1} or {value + 1}")
    return value


#: Side of a square window centred on its pixel, in pixels.
OddSize: TypeAlias = Annotated[int, pydantic.Field(ge=3, le=1001), pydantic.AfterValidator(_odd)]

#: A value as a fraction of its dtype's nominal range: 1 is 255, 65535 or 1.0.
Fraction: TypeAlias = Annotated[float, pydantic.Field(ge=0, le=1)]


def white(dtype: DTypeLike) -> int | float:
    """The top of a dtype's nominal range: 255, 65535, or 1.0 for float32 (whose values may lie outside).

    Raises:
        TypeError: any other dtype.
    """
    try:
        return _WHITE[np.dtype(dtype)]
    except KeyError:
        raise TypeError(f"pixels are uint8, uint16 or float32; got {np.dtype(dtype)}") from None


def by_channel_groups(function: Callable[[Pixels], Any], pixels: Pixels, limit: int = MAX_CV_CHANNELS) -> Pixels:
    """Runs an OpenCV function over groups of at most `limit` channels; the result always has a channel axis.

    `function` must process each channel independently.
    """
    channels = pixels.shape[2]
    if channels <= limit:
        return _with_axis(function(pixels))
    groups = [np.ascontiguousarray(pixels[:, :, start : start + limit]) for start in range(0, channels, limit)]
    return np.concatenate([_with_axis(function(group)) for group in groups], axis=2)


def each_channel(function: Callable[[Pixels], Any], pixels: Pixels) -> Pixels:
    """Runs a function of one height x width plane over every channel."""
    channels = pixels.shape[2]
    if channels == 1:
        return _with_axis(function(pixels[:, :, 0]))
    if channels <= MAX_CV_CHANNELS:
        return _with_axis(cv2.merge([function(plane) for plane in cv2.split(pixels)]))
    return np.stack([function(np.ascontiguousarray(pixels[:, :, index])) for index in range(channels)], axis=2)


def saturated(values: NDArray[Any], dtype: DTypeLike, scale: float = 1.0) -> Pixels:
    """`values * scale` as pixels: rounded (half to even) and clipped for integers, unchanged for float32.

    Args:
        values: float32 or float64, of any shape, below 2**31 once scaled.
        dtype: uint8, uint16 or float32.
        scale: multiplies the values.
    """
    target = np.dtype(dtype)
    if target == np.float32:
        return values.astype(np.float32, copy=False) if scale == 1 else np.multiply(values, scale, dtype=np.float32)
    flat = values.reshape(values.shape[0], -1)
    depth = cv2.CV_8U if target == np.uint8 else cv2.CV_16U
    return np.asarray(cv2.addWeighted(flat, scale, flat, 0.0, 0.0, dtype=depth)).reshape(values.shape)


def border(fill: float | str, dtype: DTypeLike) -> tuple[int, float]:
    """OpenCV's border code for a fill, and the pixel value if it is a constant."""
    if isinstance(fill, str):
        return _FILL_CODES[fill], 0.0
    return cv2.BORDER_CONSTANT, float(saturated(np.full((1, 1), fill), dtype, white(dtype))[0, 0])


def padded(pixels: Pixels, rows: int | tuple[int, int], columns: int | tuple[int, int], fill: float | str) -> Pixels:
    """A picture with rows and columns added: as many on both sides, or a pair (before, after)."""
    code, value = border(fill, pixels.dtype)
    top, bottom = rows if isinstance(rows, tuple) else (rows, rows)
    left, right = columns if isinstance(columns, tuple) else (columns, columns)
    return by_channel_groups(
        lambda group: cv2.copyMakeBorder(group, top, bottom, left, right, code, value=(value,) * 4), pixels, 4
    )


def as_8_bits(pixels: Pixels, low: float, high: float) -> Pixels:
    """Maps `low` to `high` onto uint8 from 0 to 255, for OpenCV functions that accept only 8 bits."""
    if pixels.dtype == np.uint8 and (low, high) == (0, 255):
        return pixels
    values = np.clip(pixels.astype(np.float64), low, high) - low
    return saturated(values, np.uint8, 255 / (high - low) if high > low else 0.0)


def finite_range(pixels: Pixels) -> tuple[float, float]:
    """The minimum and maximum over all channels.

    Raises:
        BadPicture: `not_finite`, if a float picture contains NaN or infinity.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise BadPicture("not_finite", "the picture contains NaN or infinity, but this step needs finite values")
    return low, high


def require_finite(pixels: Pixels) -> None:
    """Raises BadPicture `not_finite` for a float picture that contains NaN or infinity."""
    if pixels.dtype == np.float32:
        finite_range(pixels)


def quantised(pixels: Pixels) -> tuple[NDArray[np.uint16], float, float]:
    """Quantises float pixels to 65,536 levels over their own range, which is returned too; a flat picture is all 0.

    Raises:
        BadPicture: `not_finite`.
    """
    low, high = finite_range(pixels)
    steps_per_unit = 65535 / (high - low) if high > low else 0.0
    return np.rint((pixels.astype(np.float64) - low) * steps_per_unit).astype(np.uint16), low, high


def through_16_bits(function: Callable[[Pixels], Any], pixels: Pixels) -> Pixels:
    """Runs a function of uint16 pixels over float32 pixels, `quantised` and back; a flat picture is returned unchanged.

    Raises:
        BadPicture: `not_finite`.
    """
    levels, low, high = quantised(pixels)
    if low == high:
        return pixels
    return (np.asarray(function(levels), np.float64) * ((high - low) / 65535) + low).astype(np.float32)


def histogram(plane: NDArray[Any]) -> NDArray[Any]:
    """How often each value occurs in a uint8 or uint16 plane: 256 or 65,536 counts, int64."""
    if plane.dtype == np.uint8:
        counts = cast("NDArray[Any]", cv2.calcHist([plane], [0], None, [256], [0, 256]))
        if plane.size < 2**24:  # beyond that its float32 counts are not exact
            return counts.ravel().astype(np.int64)
    return np.bincount(plane.ravel(), minlength=int(white(plane.dtype)) + 1)


def looked_up(pixels: Pixels, table: NDArray[Any]) -> Pixels:
    """Each uint8 or uint16 value replaced by its entry in a table of 256 or 65,536."""
    if pixels.dtype == np.uint8:
        return np.asarray(cv2.LUT(pixels, table)).reshape(pixels.shape)
    return table.take(pixels)


@cache
def ramp(dtype: np.dtype[Any]) -> NDArray[Any]:
    """Every value of uint8 or uint16 (256 or 65,536) as float64, read-only; lookup tables are computed from it."""
    values = np.arange(int(white(dtype)) + 1, dtype=np.float64)
    values.flags.writeable = False
    return values


def _with_axis(pixels: NDArray[Any]) -> Pixels:
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


_WHITE: dict[np.dtype[Any], int | float] = {
    np.dtype(np.uint8): 255,
    np.dtype(np.uint16): 65535,
    np.dtype(np.float32): 1.0,
}
