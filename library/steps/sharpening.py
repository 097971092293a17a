"""Filters that sharpen. Integers are rounded and saturated; float32 is not clipped."""

from __future__ import annotations

from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from library.imaging.picture import Pixels
from library.steps.arrays import BORDER_CODES, Border, by_channel_groups, saturated
from library.steps.base import register


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
