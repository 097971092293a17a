"""A filter that convolves with any kernel, of one channel or of several."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal, TypeAlias, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from library.errors import BadPicture
from library.imaging.picture import Pixels
from library.steps.arrays import BORDER_CODES, Border, by_channel_groups, saturated, white
from library.steps.base import register
from library.steps.moves import Move, size_of, windows

# 65535 times this fits the 32-bit integers through which OpenCV saturates.
_MAX_WEIGHT_SUM = 10_000
_MAX_SIDE_PX = 1001

#: Rows of weights.
_Plane: TypeAlias = tuple[tuple[float, ...], ...]


@register("filter")
class Convolve:
    """Convolve every channel with a kernel, or all channels with one kernel each, as a convolution layer does.

    A kernel of rows of weights filters every channel by itself. A kernel of several such planes, one for each channel,
    gives one channel: the sum of all, as one output of a convolution layer (a colour detector, for example).

    It is a cross-correlation: the kernel is not flipped, as in PyTorch's `conv2d` and OpenCV's `filter2D`; for a
    mathematical convolution rotate the kernel by 180 degrees. Height and width of the result are
    `(side + padding at both ends - dilation * (kernel side - 1) - 1) // stride + 1`. Integers are rounded (half to
    even) and saturated, so negative sums become 0, as in a ReLU; `offset=0.5` shows them as darker than grey. float32
    is not clipped. Sums are float32 for uint8 and float32, float64 for uint16. Above about 50 weights (with dilation's
    zeros) OpenCV uses a Fourier transform, so exact halves may round either way.

    Raises:
        BadPicture: `too_small` if the kernel does not fit into the padded picture; `wrong_channels` if it has planes,
            but not as many as the picture has channels.
    """

    kernel: Annotated[
        tuple[tuple[float | tuple[float, ...], ...], ...],
        Field(description="weights as rows: a list of lists of equal length; or a list of such kernels, one a channel"),
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
    offset: Annotated[
        float, Field(ge=-1, le=1, description="is added to the sums, as a fraction of white; 0.5 makes zero grey")
    ] = 0.0

    @field_validator("kernel")
    @classmethod
    def _is_regular(cls, kernel: tuple[tuple[float | tuple[float, ...], ...], ...]) -> object:
        of_channels = [isinstance(part, tuple) for plane in kernel for part in plane]
        if any(of_channels) and not all(of_channels):
            raise ValueError("should be rows of weights, or a list of kernels of rows of weights; this mixes both")
        planes = cast("tuple[_Plane, ...]", kernel if any(of_channels) else (kernel,))
        heights = sorted({len(plane) for plane in planes})
        lengths = sorted({len(row) for plane in planes for row in plane})
        if not lengths or 0 in heights or 0 in lengths:
            raise ValueError("should have at least one weight, as in [[1]]")
        if len(lengths) > 1:
            raise ValueError(f"should have rows of equal length; they have {' and '.join(map(str, lengths))}")
        if len(heights) > 1:
            raise ValueError(f"should have as many rows for each channel; they have {' and '.join(map(str, heights))}")
        return kernel

    @field_validator("padding")
    @classmethod
    def _is_a_length(cls, padding: str | int) -> str | int:
        if isinstance(padding, int) and not 0 <= padding <= _MAX_SIDE_PX:
            raise ValueError(f'should be "same", "valid", or 0 to {_MAX_SIDE_PX} pixels')
        return padding

    @model_validator(mode="after")
    def _check(self) -> Convolve:
        planes = np.asarray(self.kernel, np.float64)
        total = float(planes.sum())
        if self.normalize and abs(total) < 1e-9:
            raise ValueError("'normalize' divides by the sum of the weights, which is 0 here")
        most = float(np.abs(planes).sum()) / (abs(total) if self.normalize else 1)
        if most > _MAX_WEIGHT_SUM:
            raise ValueError(f"the weights' absolute values sum to {most:g}; the limit is {_MAX_WEIGHT_SUM}")
        side = self.dilation * (max(planes.shape[-2:]) - 1) + 1
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
    def channels(self) -> int | None:
        """The number of channels that a picture must have; None if every channel is filtered by itself."""
        return len(self.kernel) if np.ndim(self.kernel) == 3 else None

    @property
    def weights(self) -> NDArray[np.float64]:
        """The kernel in OpenCV's form: with zeros for dilation, and divided by its sum for `normalize`; read-only.

        Rows x columns, or channels x rows x columns.
        """
        return _spread(self.kernel, self.dilation, self.normalize)

    def __call__(self, pixels: Pixels) -> Pixels:
        self._unstrided(*size_of(pixels))
        offset = self.offset * white(pixels.dtype)
        if self.channels is None:
            depth = cv2.CV_64F if pixels.dtype == np.uint16 else -1

            def convolved(group: Pixels) -> Pixels:
                sums = self._sums(group, self.weights, depth, offset)
                return saturated(sums, pixels.dtype) if depth != -1 else sums

            return by_channel_groups(convolved, pixels)
        if pixels.shape[2] != self.channels:
            raise BadPicture(
                "wrong_channels",
                f"the kernel has weights for {self.channels} channels; the picture has {pixels.shape[2]}",
            )
        depth = cv2.CV_64F if pixels.dtype == np.uint16 else cv2.CV_32F
        planes = (np.ascontiguousarray(pixels[:, :, channel]) for channel in range(self.channels))
        total = self._sums(next(planes), self.weights[0], depth, offset)
        for plane, weights in zip(planes, self.weights[1:], strict=True):
            total = total + self._sums(plane, weights, depth, 0.0)
        return saturated(total, pixels.dtype)[:, :, None]

    def _sums(self, pixels: Pixels, weights: NDArray[np.float64], depth: int, offset: float) -> Pixels:
        """Weighs the surroundings of every `stride`-th pixel of each channel, in OpenCV's depth, -1 for the same."""
        height, width = self._unstrided(*size_of(pixels))
        pad = self.padding if isinstance(self.padding, int) else 0
        rows, columns = weights.shape
        anchor = ((columns - 1) // 2, (rows - 1) // 2) if self.padding == "same" else (0, 0)
        border = BORDER_CODES[self.border or "zeros"]
        padded = cv2.copyMakeBorder(pixels, pad, pad, pad, pad, border) if pad else pixels
        full = np.asarray(cv2.filter2D(padded, depth, weights, anchor=anchor, delta=offset, borderType=border))
        return np.ascontiguousarray(full[: height : self.stride, : width : self.stride])

    def move(self, height: int, width: int) -> Move:
        """Where a picture of this size goes: a new pixel is where the middle of its window was."""
        size = [(side - 1) // self.stride + 1 for side in self._unstrided(height, width)]
        rows, columns = self.weights.shape[-2:]
        if self.padding == "same":  # an even kernel has its middle on the pixel before it, so the picture stays
            return windows((size[0], size[1]), (1, 1), self.stride, (0, 0), self)
        pad = self.padding if isinstance(self.padding, int) else 0
        return windows((size[0], size[1]), (rows, columns), self.stride, (-pad, -pad), self)

    def _unstrided(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result at stride 1."""
        rows, columns = self.weights.shape[-2:]
        pad = self.padding if isinstance(self.padding, int) else 0
        grown = (rows - 1, columns - 1) if self.padding == "same" else (2 * pad, 2 * pad)
        full = height + grown[0] - rows + 1, width + grown[1] - columns + 1
        if min(full) < 1:
            sizes = f"{columns}x{rows}", f"{width}x{height}"
            raise BadPicture("too_small", f"a kernel of {sizes[0]} pixels does not fit into a picture of {sizes[1]}")
        return full


@lru_cache(maxsize=64)
def _spread(kernel: object, dilation: int, normalize: bool) -> NDArray[np.float64]:
    weights = np.asarray(kernel, np.float64)
    spread = np.zeros([*weights.shape[:-2], *(dilation * (side - 1) + 1 for side in weights.shape[-2:])])
    spread[..., ::dilation, ::dilation] = weights / weights.sum() if normalize else weights
    spread.flags.writeable = False
    return spread
