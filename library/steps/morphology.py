"""Filters of mathematical morphology: the least and the greatest value around each pixel.

Serra 1982. Channels are filtered separately, dtypes are kept, and no new value appears. Outside the picture there is
nothing: a window at the border sees only pixels of the picture, so opening and closing twice change nothing more, and
the negative of an erosion is the dilation of the negative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from library.imaging.picture import Pixels
from library.steps.arrays import OddSize, by_channel_groups, require_finite
from library.steps.base import register

#: The pixels around one that count: all of the window, those within half its side, or its middle row and column.
Shape: TypeAlias = Literal["square", "disk", "cross"]
_Size: TypeAlias = Annotated[OddSize, Field(le=255, description="side of the window in pixels, odd")]
_Shape: TypeAlias = Annotated[Shape, Field(description="pixels of the window that count")]


@register("filter", still=True)
class Erode:
    """Replace each pixel by the darkest one around it: light parts shrink, and small ones vanish.

    Raises:
        BadPicture: `not_finite`.
    """

    size: _Size = 3
    shape: _Shape = "square"

    def __call__(self, pixels: Pixels) -> Pixels:
        return _least(pixels, self.size, self.shape)


@register("filter", still=True)
class Dilate:
    """Replace each pixel by the lightest one around it: light parts grow, and thin dark ones vanish.

    Raises:
        BadPicture: `not_finite`.
    """

    size: _Size = 3
    shape: _Shape = "square"

    def __call__(self, pixels: Pixels) -> Pixels:
        return _greatest(pixels, self.size, self.shape)


@register("filter", still=True)
class Open:
    """Remove light parts that are smaller than the window, and keep the shape of others: erode, then dilate.

    Raises:
        BadPicture: `not_finite`.
    """

    size: _Size = 3
    shape: _Shape = "square"

    def __call__(self, pixels: Pixels) -> Pixels:
        return _greatest(_least(pixels, self.size, self.shape), self.size, self.shape)


@register("filter", still=True)
class Close:
    """Fill dark parts that are smaller than the window, and keep the shape of others: dilate, then erode.

    Raises:
        BadPicture: `not_finite`.
    """

    size: _Size = 3
    shape: _Shape = "square"

    def __call__(self, pixels: Pixels) -> Pixels:
        return _least(_greatest(pixels, self.size, self.shape), self.size, self.shape)


@lru_cache(maxsize=64)
def window(size: int, shape: Shape) -> NDArray[np.uint8]:
    """The window, size x size: 1 for the pixels that count, else 0; read-only."""
    across, down = np.meshgrid(*[np.arange(size) - size // 2] * 2)
    inside = {
        "square": np.ones((size, size), np.bool_),
        "disk": across**2 + down**2 <= (size / 2) ** 2,
        "cross": (across == 0) | (down == 0),
    }[shape]
    counted = inside.astype(np.uint8)
    counted.flags.writeable = False
    return counted


def _least(pixels: Pixels, size: int, shape: Shape) -> Pixels:
    return _morphed(cast(Any, cv2.erode), pixels, size, shape)


def _greatest(pixels: Pixels, size: int, shape: Shape) -> Pixels:
    return _morphed(cast(Any, cv2.dilate), pixels, size, shape)


def _morphed(combine: Callable[[Pixels, NDArray[np.uint8]], Any], pixels: Pixels, size: int, shape: Shape) -> Pixels:
    require_finite(pixels)
    # OpenCV's default border is a constant that no pixel of the picture loses against.
    return by_channel_groups(lambda group: combine(group, window(size, shape)), pixels)
