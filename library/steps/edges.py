"""Filters that find edges in each channel separately; for one edge map of a colour picture, use `grayscale` first."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import cv2
import numpy as np
from pydantic import Field, model_validator

from library.imaging.picture import Pixels
from library.steps.arrays import (
    BORDER_CODES,
    Border,
    Fraction,
    as_8_bits,
    by_channel_groups,
    each_channel,
    require_finite,
    saturated,
    white,
)
from library.steps.base import register

# Weights across the derivative [-1, 0, 1].
_SMOOTHING: dict[str, tuple[float, float, float]] = {
    "sobel": (1, 2, 1),
    "prewitt": (1, 1, 1),
    "scharr": (3, 10, 3),
}


@register("filter", still=True)
class Edges:
    """Show the strength of edges: the gradient at each pixel.

    `vertical` finds vertical edges (the derivative along x), `horizontal` horizontal ones (along y), and `all` is the
    gradient's length, `sqrt(dx**2 + dy**2)`. The kernels are those of Sobel and Feldman 1968, Prewitt 1970 and Scharr
    2000, divided by the sum of their smoothing weights: a straight step of height d gives d, so black to white gives
    white. `laplacian` is the absolute value of the 4-neighbour Laplacian; it has no direction, and a step of height d
    also gives d. The result is multiplied by `gain`; integers are rounded and saturated, float32 is not clipped.
    """

    direction: Annotated[
        Literal["all", "vertical", "horizontal"], Field(description="direction of the edges to find")
    ] = "all"
    operator: Annotated[Literal["sobel", "prewitt", "scharr", "laplacian"], Field(description="kernels to use")] = (
        "sobel"
    )
    gain: Annotated[
        float,
        Field(gt=0, le=1000, description="factor of the result; 1 is true to scale, photos need more to be visible"),
    ] = 3.0
    border: Annotated[Border, Field(description="what the filter sees outside the picture")] = "reflect_101"

    @model_validator(mode="after")
    def _check(self) -> Edges:
        if self.operator == "laplacian" and self.direction != "all":
            raise ValueError(f'the laplacian has no direction; \'direction\' should be "all", not "{self.direction}"')
        return self

    def __call__(self, pixels: Pixels) -> Pixels:
        return by_channel_groups(self._magnitude, pixels)

    def _magnitude(self, group: Pixels) -> Pixels:
        border = BORDER_CODES[self.border]
        one_way = self.direction != "all" or self.operator == "laplacian"
        # 16-bit integers hold every derivative of uint8 exactly, in half the memory.
        depth = cv2.CV_16S if one_way and group.dtype == np.uint8 else cv2.CV_32F
        if self.operator == "laplacian":
            return self._scaled(cv2.Laplacian(group, depth, borderType=border), 1, group)
        smoothing = _SMOOTHING[self.operator]
        across, along = np.asarray(smoothing, np.float32), np.asarray((-1, 0, 1), np.float32)
        total = sum(smoothing)
        if self.direction == "horizontal":
            return self._scaled(cv2.sepFilter2D(group, depth, across, along, borderType=border), total, group)
        dx = cv2.sepFilter2D(group, depth, along, across, borderType=border)
        if self.direction == "vertical":
            return self._scaled(dx, total, group)
        dy = cv2.sepFilter2D(group, depth, across, along, borderType=border)
        return self._scaled(_length(dx, dy), total, group)

    def _scaled(self, derivative: Any, total: float, group: Pixels) -> Pixels:
        scale = self.gain / total
        if group.dtype == np.uint8:
            return cast(Pixels, cv2.convertScaleAbs(derivative, alpha=scale)).reshape(group.shape)
        return saturated(np.abs(derivative), group.dtype, scale).reshape(group.shape)


@register("filter", still=True)
class Canny:
    """Draw edges one pixel wide with Canny's method: white on 0.

    Canny 1986: Sobel gradients (L2 norm), thinned to their ridges; those above `high` are edges, and so are those above
    `low` that are connected to one. It does not blur: put `gaussian_blur` before it. Thresholds are in the units of
    `edges`: a step from black to white is 1 (1020 in OpenCV's units for uint8). uint16 and float32 are scaled to 8 bits
    first, float32 clipped to 0..1.

    Raises:
        BadPicture: `not_finite`.
    """

    low: Annotated[Fraction, Field(description="gradient at which an edge continues")] = 0.1
    high: Annotated[Fraction, Field(description="gradient at which an edge starts")] = 0.2

    @model_validator(mode="after")
    def _in_order(self) -> Canny:
        if self.low > self.high:
            raise ValueError(f"'low' should not be above 'high' ({self.high})")
        return self

    def __call__(self, pixels: Pixels) -> Pixels:
        require_finite(pixels)
        low, high = self.low * 4 * 255, self.high * 4 * 255
        eight_bits = as_8_bits(pixels, 0, white(pixels.dtype))
        edges = each_channel(lambda plane: cv2.Canny(plane, low, high, L2gradient=True), eight_bits)
        if pixels.dtype == np.uint8:
            return edges
        return np.multiply(edges > 0, white(pixels.dtype), dtype=pixels.dtype)


def _length(dx: Any, dy: Any) -> Any:
    # Not cv2.magnitude, whose last bit depends on the memory alignment of the arrays.
    with np.errstate(over="ignore"):
        np.multiply(dx, dx, out=dx)
        np.multiply(dy, dy, out=dy)
        np.add(dx, dy, out=dx)
    return np.sqrt(dx, out=dx)
