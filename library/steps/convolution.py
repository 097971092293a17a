"""A filter that convolves with any kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from library.errors import BadPicture
from library.imaging.picture import Pixels
from library.steps.arrays import BORDER_CODES, Border, by_channel_groups, saturated
from library.steps.base import register
from library.steps.moves import Move, size_of, windows

# 65535 times this fits the 32-bit integers through which OpenCV saturates.
_MAX_WEIGHT_SUM = 10_000
_MAX_SIDE_PX = 1001


@register("filter")
class Convolve:
    """Convolve every channel with a kernel, as a convolution layer does.

    It is a cross-correlation: the kernel is not flipped, as in PyTorch's `conv2d` and OpenCV's `filter2D`; for a
    mathematical convolution rotate the kernel by 180 degrees. Height and width of the result are
    `(side + padding at both ends - dilation * (kernel side - 1) - 1) // stride + 1`. Integers are rounded (half to
    even) and saturated; float32 is not clipped. Sums are float32 for uint8 and float32, float64 for uint16.
    Above about 50 weights (with dilation's zeros) OpenCV uses a Fourier transform, so exact halves may round either
    way.

    Raises:
        BadPicture: `too_small` if the kernel does not fit into the padded picture.
    """

    kernel: Annotated[
        tuple[tuple[float, ...], ...], Field(description="weights as rows: a list of lists of equal length")
    ]
    stride: Annotated[int, Field(ge=1, le=1000, description="pixels from one window to the next")] = 1
    padding: Annotated[
        Literal["same", "valid"] | int,
        Field(
            description='"same": keeps the size at stride 1 (an even kernel reaches one pixel further right and down); '
            '"valid": none; or pixels on every side'
        ),
    ] = "same"
    dilation: Annotated[int, Field(ge=1, le=1000, description="pixels from one weight to the next")] = 1
    normalize: Annotated[
        bool, Field(description="divide the weights by their sum, which keeps a flat picture unchanged")
    ] = False
    border: Annotated[Border | None, Field(description="what the padding holds (default reflect_101)")] = None

    @field_validator("kernel")
    @classmethod
    def _is_a_matrix(cls, kernel: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        lengths = sorted({len(row) for row in kernel})
        if not lengths or 0 in lengths:
            raise ValueError("should have at least one weight, as in [[1]]")
        if len(lengths) > 1:
            raise ValueError(f"should have rows of equal length; they have {' and '.join(map(str, lengths))}")
        return kernel

    @field_validator("padding")
    @classmethod
    def _is_a_length(cls, padding: str | int) -> str | int:
        if isinstance(padding, int) and not 0 <= padding <= _MAX_SIDE_PX:
            raise ValueError(f'should be "same", "valid", or 0 to {_MAX_SIDE_PX} pixels')
        return padding

    @model_validator(mode="after")
    def _check(self) -> Convolve:
        total = sum(weight for row in self.kernel for weight in row)
        if self.normalize and abs(total) < 1e-9:
            raise ValueError("'normalize' divides by the sum of the weights, which is 0 here")
        most = sum(abs(weight) for row in self.kernel for weight in row) / (abs(total) if self.normalize else 1)
        if most > _MAX_WEIGHT_SUM:
            raise ValueError(f"the weights' absolute values sum to {most:g}; the limit is {_MAX_WEIGHT_SUM}")
        side = self.dilation * (max(len(self.kernel), len(self.kernel[0])) - 1) + 1
        if side > _MAX_SIDE_PX:
            raise ValueError(f"the kernel covers {side} pixels; the limit is {_MAX_SIDE_PX}")
        padded = self.padding not in ("valid", 0)
        if padded and self.border is None:
            object.__setattr__(self, "border", "reflect_101")
        if not padded and self.border is not None:
            raise ValueError(
                f"'border' has no effect with padding={self.padding!r}, which needs no pixels outside the picture"
            )
        return self

    @property
    def weights(self) -> NDArray[np.float64]:
        """The kernel in OpenCV's form: with zeros for dilation, and divided by its sum for `normalize`; read-only."""
        return _spread(self.kernel, self.dilation, self.normalize)

    def __call__(self, pixels: Pixels) -> Pixels:
        height, width = self._unstrided(*size_of(pixels))
        kernel = self.weights
        pad = self.padding if isinstance(self.padding, int) else 0
        rows, columns = kernel.shape
        anchor = ((columns - 1) // 2, (rows - 1) // 2) if self.padding == "same" else (0, 0)
        border = BORDER_CODES[self.border or "zeros"]
        depth = cv2.CV_64F if pixels.dtype == np.uint16 else -1

        def convolved(group: Pixels) -> Pixels:
            padded = cv2.copyMakeBorder(group, pad, pad, pad, pad, border) if pad else group
            full = np.asarray(cv2.filter2D(padded, depth, kernel, anchor=anchor, borderType=border))
            picked = np.ascontiguousarray(full[: height : self.stride, : width : self.stride])
            return saturated(picked, pixels.dtype) if depth != -1 else picked

        return by_channel_groups(convolved, pixels)

    def move(self, height: int, width: int) -> Move:
        """Where a picture of this size goes: a new pixel is where the middle of its window was."""
        size = [(side - 1) // self.stride + 1 for side in self._unstrided(height, width)]
        rows, columns = self.weights.shape
        if self.padding == "same":  # an even kernel has its middle on the pixel before it, so the picture stays
            return windows((size[0], size[1]), (1, 1), self.stride, (0, 0), self)
        pad = self.padding if isinstance(self.padding, int) else 0
        return windows((size[0], size[1]), (rows, columns), self.stride, (-pad, -pad), self)

    def _unstrided(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result at stride 1."""
        rows, columns = self.weights.shape
        pad = self.padding if isinstance(self.padding, int) else 0
        grown = (rows - 1, columns - 1) if self.padding == "same" else (2 * pad, 2 * pad)
        full = height + grown[0] - rows + 1, width + grown[1] - columns + 1
        if min(full) < 1:
            sizes = f"{columns}x{rows}", f"{width}x{height}"
            raise BadPicture("too_small", f"a kernel of {sizes[0]} pixels does not fit into a picture of {sizes[1]}")
        return full


@lru_cache(maxsize=64)
def _spread(kernel: tuple[tuple[float, ...], ...], dilation: int, normalize: bool) -> NDArray[np.float64]:
    weights = np.asarray(kernel, np.float64)
    spread = np.zeros([dilation * (side - 1) + 1 for side in weights.shape])
    spread[::dilation, ::dilation] = weights / weights.sum() if normalize else weights
    spread.flags.writeable = False
    return spread
