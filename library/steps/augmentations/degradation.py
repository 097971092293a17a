"""Augmentations that degrade a picture: noise, blur, JPEG artefacts."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from library.errors import BadPicture
from library.imaging import codec
from library.imaging.picture import Pixels
from library.randomness import in_order, uniform
from library.steps.arrays import Fraction, by_channel_groups, each_channel, saturated, white
from library.steps.base import register

_Sigma = Annotated[float, Field(gt=0, le=50)]
_Quality = Annotated[int, Field(ge=1, le=100)]


@register("augmentation", still=True)
class GaussianNoise:
    """Add Gaussian noise, independently to each channel of each pixel.

    The noise has 65,536 possible values, the midpoints of equally likely parts of the normal distribution. They take a
    third of the time of NumPy's exact numbers and end at 4.3 sigma. Integers saturate, float32 is not clipped.
    """

    sigma: Annotated[Fraction, Field(gt=0, description="standard deviation, as a fraction of white")]

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        noise = normal_levels().take(rng.integers(0, 65_536, pixels.shape, np.uint16))
        noise *= np.float32(self.sigma * white(pixels.dtype))
        noise += pixels
        return saturated(noise, pixels.dtype)


@register("augmentation", still=True)
class RandomBlur:
    """Blur with a Gaussian of random width; for a fixed width use `sometimes(0.5, gaussian_blur(sigma=1))`.

    Like torchvision's GaussianBlur(sigma=(low, high)); the kernel is as wide as that of `gaussian_blur`.
    """

    sigma: Annotated[
        Annotated[tuple[_Sigma, _Sigma], AfterValidator(in_order)],
        Field(description="[low, high]: standard deviation in pixels, drawn uniformly"),
    ] = (0.1, 2.0)

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        sigma = uniform(*self.sigma, rng)
        return by_channel_groups(
            lambda group: cv2.GaussianBlur(group, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), pixels
        )


@register("augmentation", still=True)
class JpegQuality:
    """Add JPEG artefacts: encode and decode at a random quality.

    RGB is stored with colours at half the resolution (4:2:0); with any other number of channels each channel is stored
    as a separate grey picture.

    Raises:
        BadPicture: `wrong_dtype` unless the picture is uint8, the only dtype that JPEG holds.
    """

    low: Annotated[_Quality, Field(description="lowest quality, 1 to 100")] = 30
    high: Annotated[_Quality, Field(description="highest quality, inclusive")] = 95

    @model_validator(mode="after")
    def _check(self) -> JpegQuality:
        if self.low > self.high:
            raise ValueError(f"'low' should not be above 'high' ({self.high})")
        return self

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if pixels.dtype != np.uint8:
            raise BadPicture("wrong_dtype", f"jpeg_quality needs uint8; the picture is {pixels.dtype}")
        encoding = codec.Encoding("jpeg", int(rng.integers(self.low, self.high, endpoint=True)))
        if pixels.shape[2] == 3:
            return _through(pixels, encoding)
        return each_channel(lambda plane: _through(plane[:, :, None], encoding)[:, :, 0], pixels)


def _through(pixels: Pixels, encoding: codec.Encoding) -> Pixels:
    return codec.decode(codec.encode(pixels, encoding)[0], limits=None)


@cache
def normal_levels() -> NDArray[Any]:
    """The midpoints of 65,536 equally likely parts of the standard normal distribution; float32, read-only."""
    normal = NormalDist()
    upper = np.array([normal.inv_cdf((level + 0.5) / 65_536) for level in range(32_768, 65_536)])
    levels = np.concatenate([-upper[::-1], upper])
    levels = (levels / levels.std()).astype(np.float32)
    levels.flags.writeable = False
    return levels
