"""Pooling filters, as between the layers of a network: each window gives one value of a smaller picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from library.errors import BadPicture
from library.imaging.picture import Pixels
from library.steps.arrays import saturated, white
from library.steps.base import register
from library.steps.moves import Move, moved, size_of, windows

Size = Annotated[int, Field(ge=1, le=1000)]


@register("filter")
class MaxPool:
    """Take the maximum of each window.

    Height and width become `(side - size) // stride + 1`: incomplete windows at the borders are left out, as in
    PyTorch's `max_pool2d`.

    Raises:
        BadPicture: `too_small` if no window fits.
    """

    size: Annotated[Size, Field(ge=2, description="side of the window in pixels")]
    stride: Annotated[Size | None, Field(description="pixels from one window to the next (default: size)")] = None

    @model_validator(mode="after")
    def _fill_in(self) -> MaxPool:
        if self.stride is None:
            object.__setattr__(self, "stride", self.size)
        return self

    def __call__(self, pixels: Pixels) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels)))

    def move(self, height: int, width: int) -> Move:
        """Where a picture of this size goes."""
        stride = self.stride or self.size
        return _pooling(height, width, self.size, stride, lambda pixels: _pooled(np.maximum, pixels, self.size, stride))


@register("filter")
class AvgPool:
    """Take the mean of each window.

    Height and width become `(side - size) // stride + 1`: incomplete windows at the borders are left out, as in
    PyTorch's `avg_pool2d`. Integers are summed exactly and rounded (half to even); float32 is summed in float32.

    Raises:
        BadPicture: `too_small` if no window fits.
    """

    size: Annotated[Size, Field(ge=2, description="side of the window in pixels")]
    stride: Annotated[Size | None, Field(description="pixels from one window to the next (default: size)")] = None

    @model_validator(mode="after")
    def _fill_in(self) -> AvgPool:
        if self.stride is None:
            object.__setattr__(self, "stride", self.size)
        return self

    def __call__(self, pixels: Pixels) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels)))

    def move(self, height: int, width: int) -> Move:
        """Where a picture of this size goes."""
        return _pooling(height, width, self.size, self.stride or self.size, self._averaged)

    def _averaged(self, pixels: Pixels) -> Pixels:
        exact_in_float32 = pixels.dtype == np.float32 or self.size**2 * white(pixels.dtype) < 2**24
        wide = pixels.astype(np.float32 if exact_in_float32 else np.float64)
        sums = _pooled(np.add, wide, self.size, self.stride or self.size)
        return saturated(sums / np.float64(self.size**2), pixels.dtype)


def _pooling(height: int, width: int, size: int, stride: int, pool: Callable[[Pixels], Pixels]) -> Move:
    """How windows of size x size shrink a picture of height x width."""
    rows, columns = ((side - size) // stride + 1 for side in (height, width))
    if rows < 1 or columns < 1:
        raise BadPicture("too_small", f"a {size}x{size} window in a picture of {width}x{height}")
    return windows((rows, columns), (size, size), stride, (0, 0), pool)


def _pooled(combine: np.ufunc, pixels: NDArray[Any], size: int, stride: int) -> NDArray[Any]:
    """Combines first down the columns, then along the rows: 2 * size passes instead of size**2."""
    height, width = ((side - size) // stride + 1 for side in pixels.shape[:2])
    down = (height - 1) * stride + 1
    rows = pixels[:down:stride].copy()
    for offset in range(1, size):
        combine(rows, pixels[offset : offset + down : stride], out=rows)
    along = (width - 1) * stride + 1
    windows = rows[:, :along:stride].copy()
    for offset in range(1, size):
        combine(windows, rows[:, offset : offset + along : stride], out=windows)
    return windows
