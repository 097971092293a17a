"""Filters that find edges and lines in each channel; for one map of a colour picture, use `grayscale` first."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
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
# Of a Gabor kernel, as in OpenCV.
_SIGMAS = 3
_MAX_SIDE_PX = 1001
# A wave so long that a kernel sees none of it.
_FLAT_PX = 1e12


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


@register("filter", still=True)
class Gabor:
    """Show lines and edges of one direction and width: the strength of a Gabor filter's answer.

    A wave under a Gaussian (Gabor 1946; Daugman 1985), as simple cells of the visual cortex and the first layers of
    trained networks. The kernel is that of OpenCV's `getGaborKernel`, which ends at 3 standard deviations, less a
    multiple of its Gaussian so that the weights sum to 0, divided by the sum of its positive weights: a picture that
    equals the kernel's signs in black and white gives white. Without `phase` the result is the length of the answers at
    0 and 90 degrees (the energy of a complex cell), which hardly depends on where exactly a line lies; with it, the
    absolute value of one answer. The result is multiplied by `gain`; integers are rounded and saturated, float32 is not
    clipped.

    Raises:
        BadPicture: `not_finite`.
    """

    # At 2 pixels every weight of the odd kernel would be 0.
    wavelength: Annotated[float, Field(ge=2.5, le=200, description="pixels from one light line to the next")]
    angle: Annotated[
        float, Field(ge=-180, le=180, description="degrees by which the lines are turned; 0 finds vertical ones")
    ] = 0.0
    sigma: Annotated[
        float | None,
        Field(ge=0.5, le=200, description="standard deviation of the Gaussian in pixels (default 0.56 wavelengths)"),
    ] = None
    aspect: Annotated[
        float, Field(ge=0.1, le=10, description="width of the Gaussian across the lines over its length along them")
    ] = 0.5
    phase: Annotated[
        float | None,
        Field(ge=-180, le=180, description="degrees: 0 for light lines, 90 for edges (default: the length of both)"),
    ] = None
    gain: Annotated[
        float, Field(gt=0, le=1000, description="factor of the result; photos need more than 1 to be visible")
    ] = 3.0
    border: Annotated[Border, Field(description="what the filter sees outside the picture")] = "reflect_101"

    @model_validator(mode="after")
    def _fill_in(self) -> Gabor:
        if self.sigma is None:  # an octave of bandwidth, as cells of the cortex have
            object.__setattr__(self, "sigma", 0.56 * self.wavelength)
        side = 2 * _SIGMAS * (self.sigma or 0.0) * max(1.0, 1 / self.aspect)
        if side > _MAX_SIDE_PX:
            raise ValueError(f"the kernel covers {side:.0f} pixels; the limit is {_MAX_SIDE_PX}")
        return self

    def kernel(self, phase: float) -> NDArray[np.float64]:
        """The weights at a phase in degrees; their sum is 0, and that of the positive ones 1."""
        return _gabor_weights(self.wavelength, self.angle, self.sigma or 0.0, self.aspect, phase)

    def __call__(self, pixels: Pixels) -> Pixels:
        require_finite(pixels)
        return by_channel_groups(self._strength, pixels)

    def _strength(self, group: Pixels) -> Pixels:
        answers = [self._answer(group, phase) for phase in ((0.0, 90.0) if self.phase is None else (self.phase,))]
        strength = _length(*answers) if len(answers) == 2 else np.abs(answers[0])
        return saturated(strength, group.dtype, self.gain).reshape(group.shape)

    def _answer(self, group: Pixels, phase: float) -> Any:
        border = BORDER_CODES[self.border]
        return np.asarray(cv2.filter2D(group, cv2.CV_32F, self.kernel(phase), borderType=border))


@lru_cache(maxsize=64)
def _gabor_weights(wavelength: float, angle: float, sigma: float, aspect: float, phase: float) -> NDArray[np.float64]:
    def kernel(length_px: float, phase: float) -> NDArray[np.float64]:
        size, turn = (0, 0), math.radians(angle)  # (0, 0): as large as 3 standard deviations need
        weights = cv2.getGaborKernel(size, sigma, turn, length_px, aspect, math.radians(phase), cv2.CV_64F)
        return np.asarray(weights, np.float64)

    wave, envelope = kernel(wavelength, phase), kernel(_FLAT_PX, 0)
    weights = wave - envelope * (wave.sum() / envelope.sum())
    weights /= np.maximum(weights, 0).sum()
    weights.flags.writeable = False
    return weights


def _length(dx: Any, dy: Any) -> Any:
    # Not cv2.magnitude, whose last bit depends on the memory alignment of the arrays.
    with np.errstate(over="ignore"):
        np.multiply(dx, dx, out=dx)
        np.multiply(dy, dy, out=dy)
        np.add(dx, dy, out=dx)
    return np.sqrt(dx, out=dx)
