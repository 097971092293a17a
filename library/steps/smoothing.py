"""Filters that smooth, or sharpen: blurs, noise removal, unsharp mask.

Channels and dtype are kept; integers are rounded and saturated, float32 is not clipped. By default the picture
continues mirrored outside its borders.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

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


@register("filter", still=True)
class BoxBlur:
    """Replace each pixel by the mean of a square window.

    Raises:
        BadPicture: `not_finite`, because running sums would spread NaN or infinity along the whole row.
    """

    size: Annotated[OddSize, Field(description="side of the window in pixels, odd")] = 3
    border: Annotated[Border, Field(description="what the filter sees outside the picture")] = "reflect_101"

    def __call__(self, pixels: Pixels) -> Pixels:
        require_finite(pixels)
        size, border = (self.size, self.size), BORDER_CODES[self.border]
        return by_channel_groups(lambda group: cv2.blur(group, size, borderType=border), pixels)


@register("filter", still=True)
class GaussianBlur:
    """Blur with a Gaussian kernel.

    The kernel ends at 3 sigma for uint8 and 4 sigma otherwise, and is normalized to sum to 1, as in OpenCV.
    """

    sigma: Annotated[float, Field(gt=0, le=250, description="standard deviation in pixels")]
    border: Annotated[Border, Field(description="what the filter sees outside the picture")] = "reflect_101"

    def __call__(self, pixels: Pixels) -> Pixels:
        sigma, border = self.sigma, BORDER_CODES[self.border]
        return by_channel_groups(lambda group: cv2.GaussianBlur(group, (0, 0), sigma, borderType=border), pixels)


@register("filter", still=True)
class MedianBlur:
    """Replace each pixel by the median of a square window, which removes salt-and-pepper noise and keeps edges.

    The border is replicated. For windows above 5 pixels uint16 and float32 use SciPy, many times slower than uint8.

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
            # Imported here because it would add a third of a second to the start of every worker.
            from scipy import ndimage

            return each_channel(lambda plane: cast(Any, ndimage).median_filter(plane, size, mode="nearest"), pixels)
        if pixels.shape[2] in (3, 4):
            return np.asarray(cv2.medianBlur(pixels, size))
        return each_channel(lambda plane: cv2.medianBlur(plane, size), pixels)


@register("filter", still=True)
class Bilateral:
    """Blur but keep edges (bilateral filter): neighbours count only if their values are similar.

    Tomasi and Manduchi 1998. The window reaches 1.5 `sigma_space`. Three channels are weighted together as one
    colour; with any other number each channel is filtered separately. uint16 is computed in float32.

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


@register("filter", still=True)
class Denoise:
    """Remove noise with non-local means: average pixels whose surroundings look alike.

    Buades, Coll and Morel 2005. Patches are compared by squared differences for uint8 and absolute differences for
    uint16 (the only ones OpenCV offers); float32 is quantised to 65,536 levels over its own range and back. Three
    channels are compared together as one colour; with any other number each channel is filtered separately. It takes
    about 0.25 s for a 500x375 photo, the slowest filter.

    Raises:
        BadPicture: `not_finite`.
    """

    strength: Annotated[
        float,
        Field(gt=0, le=1, description="allowed difference of patches, as a fraction of white; about the noise level"),
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


@register("filter", still=True)
class Sharpen:
    """Sharpen with an unsharp mask: `pixels + amount * (pixels - gaussian_blur(pixels))`."""

    amount: Annotated[float, Field(gt=0, le=100, description="factor of the difference that is added")] = 1.0
    sigma: Annotated[float, Field(gt=0, le=250, description="standard deviation of the blur in pixels")] = 1.0
    border: Annotated[Border, Field(description="what the filter sees outside the picture")] = "reflect_101"

    def __call__(self, pixels: Pixels) -> Pixels:
        amount, sigma, border = self.amount, self.sigma, BORDER_CODES[self.border]

        def sharpened(group: Pixels) -> Pixels:
            blurred = cv2.GaussianBlur(group, (0, 0), sigma, borderType=border)
            flat = group.reshape(group.shape[0], -1)
            mixed = cv2.addWeighted(flat, 1 + amount, np.reshape(blurred, flat.shape), -amount, 0.0)
            return np.asarray(mixed).reshape(group.shape)

        return by_channel_groups(sharpened, pixels)


@register("filter", still=True)
class LaplacianSharpen:
    """Sharpen with the Laplacian: `pixels - amount * laplacian(pixels)`, one 3x3 convolution.

    The Laplacian is the sum of the 4 or 8 neighbours minus 4 or 8 times the centre (Gonzalez and Woods, Digital Image
    Processing, 3.6).
    """

    amount: Annotated[float, Field(gt=0, le=100, description="factor of the Laplacian that is subtracted")] = 1.0
    neighbors: Annotated[Literal[4, 8], Field(description="4: sides only; 8: corners too")] = 4
    border: Annotated[Border, Field(description="what the filter sees outside the picture")] = "reflect_101"

    @property
    def kernel(self) -> NDArray[np.float64]:
        """The weights, 3 x 3."""
        kernel = np.full((3, 3), -self.amount)
        if self.neighbors == 4:
            kernel[::2, ::2] = 0
        kernel[1, 1] = 1 + self.neighbors * self.amount
        return kernel

    def __call__(self, pixels: Pixels) -> Pixels:
        kernel = self.kernel
        border = BORDER_CODES[self.border]
        depth = cv2.CV_64F if pixels.dtype == np.uint16 else -1

        def sharpened(group: Pixels) -> Pixels:
            filtered = np.asarray(cv2.filter2D(group, depth, kernel, borderType=border))
            return saturated(filtered, pixels.dtype) if depth != -1 else filtered

        return by_channel_groups(sharpened, pixels)
