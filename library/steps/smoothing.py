"""Filters that smooth: blurs, and the removal of noise.

A picture of any channels and dtype keeps them, and integers are rounded. Past the rim a filter sees the picture
mirrored (`border`).
"""

from __future__ import annotations

from typing import Annotated, Any, cast

import cv2
import numpy as np
from pydantic import Field

from library.extras import check_installed
from library.imaging.picture import Pixels
from library.steps.arrays import (
    BORDER_CODES,
    Border,
    Fraction,
    OddSize,
    by_channel_groups,
    each_channel,
    finite_range,
    require_finite,
    saturated,
    through_16_bits,
    white,
)
from library.steps.base import register


@register("filter")
class BoxBlur:
    """Mean over a square window.

    Raises:
        BadPicture: `not_finite`: the running sums would carry one such pixel along its whole row.
    """

    size: Annotated[OddSize, Field(description="side of the window in pixels, odd")] = 3
    border: Annotated[Border, Field(description="what lies past the rim")] = "reflect_101"

    def __call__(self, pixels: Pixels) -> Pixels:
        require_finite(pixels)
        size, border = (self.size, self.size), BORDER_CODES[self.border]
        return by_channel_groups(lambda group: cv2.blur(group, size, borderType=border), pixels)


@register("filter")
class GaussianBlur:
    """Gaussian blur.

    The kernel is cut off, and made to sum to 1, at 3 sigma for uint8 and 4 sigma otherwise, as in OpenCV.
    """

    sigma: Annotated[float, Field(gt=0, le=250, description="standard deviation in pixels")]
    border: Annotated[Border, Field(description="what lies past the rim")] = "reflect_101"

    def __call__(self, pixels: Pixels) -> Pixels:
        sigma, border = self.sigma, BORDER_CODES[self.border]
        return by_channel_groups(lambda group: cv2.GaussianBlur(group, (0, 0), sigma, borderType=border), pixels)


@register("filter")
class MedianBlur:
    """Median over a square window: takes out salt and pepper, keeps edges.

    The rim is replicated. uint16 and float32 go through SciPy past 5 pixels, many times slower than uint8.

    Raises:
        BadPicture: `not_finite`.
    """

    size: Annotated[OddSize, Field(le=255, description="side of the window in pixels, odd")] = 3

    def __call__(self, pixels: Pixels) -> Pixels:
        require_finite(pixels)
        size = self.size
        if size <= 5:
            return by_channel_groups(lambda group: cv2.medianBlur(group, size), pixels)
        if pixels.dtype != np.uint8:
            # Loaded only here: it would add a third of a second to the start of every worker.
            check_installed("scipy", f"median_blur(size={size}) of {pixels.dtype} pixels")
            from scipy import ndimage

            return each_channel(lambda plane: cast(Any, ndimage).median_filter(plane, size, mode="nearest"), pixels)
        if pixels.shape[2] in (3, 4):
            return np.asarray(cv2.medianBlur(pixels, size))
        return each_channel(lambda plane: cv2.medianBlur(plane, size), pixels)


@register("filter")
class Bilateral:
    """Bilateral filter: a Gaussian blur that counts only neighbours of like value, so edges stay.

    Tomasi and Manduchi 1998. The window reaches 1.5 `sigma_space`. Three channels are weighed together as one
    colour; with any other number each channel is by itself. uint16 is computed in float32.

    Raises:
        BadPicture: `not_finite`.
    """

    sigma_space: Annotated[float, Field(gt=0, le=50, description="standard deviation over the picture, in pixels")] = (
        3.0
    )
    sigma_color: Annotated[
        Fraction, Field(gt=0, description="standard deviation over values, as a fraction of white")
    ] = 0.1

    def __call__(self, pixels: Pixels) -> Pixels:
        require_finite(pixels)
        values = pixels.astype(np.float32) if pixels.dtype == np.uint16 else pixels
        sigma_color, sigma_space = self.sigma_color * white(pixels.dtype), self.sigma_space

        def smooth(part: Pixels) -> Any:
            return cv2.bilateralFilter(part, 0, sigma_color, sigma_space)

        smoothed = np.asarray(smooth(values)) if pixels.shape[2] == 3 else each_channel(smooth, values)
        return saturated(smoothed, pixels.dtype) if pixels.dtype == np.uint16 else smoothed


@register("filter")
class Denoise:
    """Non-local means: each pixel becomes the mean of those whose surroundings look like its own.

    Buades, Coll and Morel 2005. Patches are compared by squares of differences for uint8, by absolute differences
    for uint16 (all that OpenCV has there); float32 is quantised to 65,536 levels over its own range and back.
    Three channels are compared together as one colour; with any other number each channel is by itself.
    About 0.25 s for a 500x375 photo: the dearest filter here.

    Raises:
        BadPicture: `not_finite`.
    """

    strength: Annotated[
        float, Field(gt=0, le=1, description="how unlike patches may be, as a fraction of white; about the noise's")
    ] = 0.04
    patch_size: Annotated[OddSize, Field(le=31, description="side of the patch compared, in pixels, odd")] = 7
    search_size: Annotated[OddSize, Field(le=101, description="side of the window searched, in pixels, odd")] = 21

    def __call__(self, pixels: Pixels) -> Pixels:
        return self._denoised(pixels) if pixels.shape[2] == 3 else each_channel(self._denoised, pixels)

    def _denoised(self, part: Pixels) -> Pixels:
        if part.dtype != np.float32:
            return self._means(part, self.strength * white(part.dtype))
        low, high = finite_range(part)
        return through_16_bits(lambda levels: self._means(levels, self.strength * 65535 / (high - low)), part)

    def _means(self, part: Pixels, strength: float) -> Pixels:
        norm = cv2.NORM_L2 if part.dtype == np.uint8 else cv2.NORM_L1
        sizes = {"templateWindowSize": self.patch_size, "searchWindowSize": self.search_size}
        return np.asarray(cast(Any, cv2).fastNlMeansDenoising(part, h=[strength], normType=norm, **sizes))
