"""Selectors that judge the look of a picture by a score of its pixels.

Where a score was measured before (`striate measure`) they read it and decode nothing; the answer is the same. Values
and limits are compared as float32, as scores are stored.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from library.imaging.picture import Picture
from library.steps import scores
from library.steps.arrays import Fraction
from library.steps.base import register
from library.steps.selectors import in_order


@register("selector")
class NotBlank:
    """Drop pictures of one colour, or nearly. Reason: `blank`.

    Raises:
        BadPicture: `not_finite`.
    """

    min_std: Annotated[
        Fraction, Field(gt=0, description="minimum standard deviation in any one channel, as a fraction of white")
    ] = 0.01

    def scores(self) -> tuple[str, ...]:
        return ("largest_std",)

    def reason(self, picture: Picture) -> str | None:
        return "blank" if _score("largest_std", picture) < np.float32(self.min_std) else None


@register("selector")
class SharpAtLeast:
    """Drop blurred pictures: those whose Laplacian has a low variance. Reason: `not_sharp`.

    Pech-Pacheco et al. 2000, on the grey picture (as `grayscale`) with values from 0 to 255 for every dtype, so that
    the usual threshold of 100 applies. It depends on the size: `not_blurry` measures all pictures at one size.

    Raises:
        BadPicture: `not_finite`.
    """

    variance: Annotated[float, Field(gt=0, description="minimum variance of the Laplacian; 100 is usual")] = 100.0

    def reason(self, picture: Picture) -> str | None:
        sharpness = scores.sharpness(scores.grey(picture.pixels))
        return "not_sharp" if np.float32(sharpness) < np.float32(self.variance) else None


@register("selector")
class NotBlurry:
    """Drop blurred pictures of any size. Reason: `blurry`.

    The variance of the Laplacian as in `sharp_at_least`, of the picture reduced to 256 pixels at its longer side, so a
    blur that cannot be seen at that size does not count. A smaller picture is measured as it is.

    Raises:
        BadPicture: `not_finite`.
    """

    sharpness: Annotated[float, Field(gt=0, description="minimum variance of the Laplacian at 256 pixels")] = 30.0

    def scores(self) -> tuple[str, ...]:
        return ("sharpness",)

    def reason(self, picture: Picture) -> str | None:
        return "blurry" if _score("sharpness", picture) < np.float32(self.sharpness) else None


@register("selector")
class NotDark:
    """Drop pictures whose brightest parts are dark; one with a few lights in the night is kept. Reason: `dark`.

    The 99th percentile of grey (as `grayscale`), as CleanVision judges it.

    Raises:
        BadPicture: `not_finite`.
    """

    lights: Annotated[Fraction, Field(gt=0, description="minimum 99th percentile, as a fraction of white")] = 0.32

    def scores(self) -> tuple[str, ...]:
        return ("brightness_p99",)

    def reason(self, picture: Picture) -> str | None:
        return "dark" if _score("brightness_p99", picture) < np.float32(self.lights) else None


@register("selector")
class NotBright:
    """Drop pictures whose darkest parts are white; one on a white background is kept. Reason: `bright`.

    The 5th percentile of grey (as `grayscale`), as CleanVision judges it.

    Raises:
        BadPicture: `not_finite`.
    """

    shadows: Annotated[Fraction, Field(gt=0, description="maximum 5th percentile, as a fraction of white")] = 0.95

    def scores(self) -> tuple[str, ...]:
        return ("brightness_p5",)

    def reason(self, picture: Picture) -> str | None:
        return "bright" if _score("brightness_p5", picture) > np.float32(self.shadows) else None


@register("selector")
class MinEntropy:
    """Drop pictures that hold little: flat colours, simple drawings, scans of empty pages. Reason: `low_entropy`.

    Shannon entropy of the histogram of grey (as `grayscale`) with 256 levels.

    Raises:
        BadPicture: `not_finite`.
    """

    bits: Annotated[float, Field(gt=0, le=8, description="minimum entropy in bits, 0 to 8")]

    def scores(self) -> tuple[str, ...]:
        return ("entropy",)

    def reason(self, picture: Picture) -> str | None:
        return "low_entropy" if _score("entropy", picture) < np.float32(self.bits) else None


@register("selector")
class ColourfulnessBetween:
    """Keep pictures by how colourful they are (Hasler and Suesstrunk 2003). Reasons: `too_grey`, `too_colourful`.

    0 is grey, 33 moderately, 59 quite and 109 extremely colourful.

    Raises:
        BadPicture: `not_finite`.
    """

    low: Annotated[float | None, Field(ge=0, description="minimum, inclusive")] = None
    high: Annotated[float | None, Field(ge=0, description="maximum, inclusive")] = None

    @model_validator(mode="after")
    def _check(self) -> ColourfulnessBetween:
        in_order(self, "low", "high")
        return self

    def scores(self) -> tuple[str, ...]:
        return ("colourfulness",)

    def reason(self, picture: Picture) -> str | None:
        return _outside(_score("colourfulness", picture), self.low, self.high, "too_grey", "too_colourful")


@register("selector")
class BrightnessBetween:
    """Keep pictures whose mean grey value (as `grayscale`) is in a range. Reasons: `too_dark`, `too_bright`.

    Raises:
        BadPicture: `not_finite`.
    """

    low: Annotated[Fraction | None, Field(description="minimum mean as a fraction of white, inclusive")] = None
    high: Annotated[Fraction | None, Field(description="maximum mean as a fraction of white, inclusive")] = None

    @model_validator(mode="after")
    def _check(self) -> BrightnessBetween:
        in_order(self, "low", "high")
        return self

    def scores(self) -> tuple[str, ...]:
        return ("brightness",)

    def reason(self, picture: Picture) -> str | None:
        return _outside(_score("brightness", picture), self.low, self.high, "too_dark", "too_bright")


@register("selector")
class ContrastAtLeast:
    """Keep pictures with enough contrast of their grey values (as `grayscale`). Reason: `low_contrast`.

    RMS contrast: the standard deviation (Peli 1990).

    Raises:
        BadPicture: `not_finite`.
    """

    std: Annotated[Fraction, Field(gt=0, description="minimum standard deviation of grey, as a fraction of white")]

    def scores(self) -> tuple[str, ...]:
        return ("contrast",)

    def reason(self, picture: Picture) -> str | None:
        return "low_contrast" if _score("contrast", picture) < np.float32(self.std) else None


def _score(name: str, picture: Picture) -> np.float32:
    """Returns a score that was measured before, or else computes it from the pixels."""
    measured = picture.measured(name)
    return np.float32(scores.score(name, picture.pixels) if measured is None else measured)


def _outside(value: np.float32, low: float | None, high: float | None, below: str, above: str) -> str | None:
    if low is not None and value < np.float32(low):
        return below
    return above if high is not None and value > np.float32(high) else None
