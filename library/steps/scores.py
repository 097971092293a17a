"""Scores of a picture's pixels: selectors, histograms and the side table of measures all use these functions.

Each takes height x width x channels of uint8, uint16 or float32 and returns a number with the precision of float32, as
it is stored in a side table, so that a stored score and one computed anew compare equal. A picture that contains NaN or
infinity raises `BadPicture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from library.errors import NOT_FINITE, BadPicture
from library.imaging.picture import Pixels
from library.steps.arrays import white
from library.steps.colour import Grayscale, composited

#: Changes when a score of the same picture may change.
VERSION = 1
#: Longer side to which a picture is reduced before its sharpness is measured, as that depends on scale.
SIDE_PX = 256

_GREY = Grayscale()


def grey(pixels: Pixels) -> Pixels:
    """Returns the grey picture that most scores are measured on: one channel, as the filter `grayscale` makes it."""
    return _GREY(pixels)


def within(grey_pixels: Pixels, side_px: int = SIDE_PX) -> Pixels:
    """Returns a grey picture reduced to `side_px` at its longer side by area averages; a smaller one is unchanged."""
    height, width = grey_pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return grey_pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(grey_pixels[:, :, 0], size, interpolation=cv2.INTER_AREA))[:, :, None]


def brightness(grey_pixels: Pixels) -> float:
    """Returns the mean of a grey picture: 0 is black, 1 is white."""
    return mean_and_std(grey_pixels)[0][0]


def contrast(grey_pixels: Pixels) -> float:
    """Returns the RMS contrast of a grey picture (Peli 1990): its standard deviation as a fraction of white."""
    return mean_and_std(grey_pixels)[1][0]


def sharpness(grey_pixels: Pixels) -> float:
    """Returns the variance of the Laplacian of a grey picture with values from 0 to 255 (Pech-Pacheco et al. 2000).

    It depends on the size of the picture; `within` comes first where pictures of different sizes are compared.
    """
    laplacian = np.asarray(cv2.Laplacian(grey_pixels, cv2.CV_32F))[:, :, None]
    deviation = float(cv2.meanStdDev(laplacian)[1][0, 0]) * 255 / white(grey_pixels.dtype)
    return _finite(deviation**2)


def entropy(grey_pixels: Pixels) -> float:
    """Returns the Shannon entropy of a grey picture's histogram of 256 levels: 0 (one level) to 8 bits (all equal)."""
    counts = levels(grey_pixels)
    shares = counts[counts > 0] / counts.sum()
    return _finite(max(0.0, float(-(shares * np.log2(shares)).sum())))


def brightness_p5(grey_pixels: Pixels) -> float:
    """Returns the 5th percentile of a grey picture, of 256 levels: near 1 if even its shadows are white."""
    return _percentile(grey_pixels, 0.05)


def brightness_p99(grey_pixels: Pixels) -> float:
    """Returns the 99th percentile of a grey picture, of 256 levels: near 0 if even its lights are black."""
    return _percentile(grey_pixels, 0.99)


def levels(grey_pixels: Pixels) -> NDArray[np.int64]:
    """Returns how many pixels of a grey picture have each of 256 levels, from black to white."""
    plane = grey_pixels
    if plane.dtype != np.uint8:
        scaled = plane.astype(np.float32) * np.float32(255 / white(plane.dtype))
        _finite(float(cv2.meanStdDev(scaled)[0][0, 0]))
        plane = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return cv2.calcHist([plane], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)


def _percentile(grey_pixels: Pixels, share: float) -> float:
    """Returns the lowest level that at least this share of the pixels do not exceed, as a fraction of white."""
    reached = np.cumsum(levels(grey_pixels))
    return float(np.float32(np.searchsorted(reached, share * reached[-1]) / 255))


def colourfulness(pixels: Pixels) -> float:
    """Returns the colourfulness M3 of Hasler and Suesstrunk 2003 of values from 0 to 255.

    0 is grey, 33 is moderately, 59 quite and 109 extremely colourful (table 2 of the paper). Alpha is composited over
    white. A picture of one or two channels has 0, and so has one of five bands or more, which have no colours.
    """
    if pixels.shape[2] not in (3, 4):
        return 0.0
    rgb = composited(pixels, (1.0, 1.0, 1.0)) if pixels.shape[2] == 4 else pixels
    depth = cv2.CV_16S if rgb.dtype == np.uint8 else cv2.CV_32F
    red, green, blue = cv2.split(rgb)
    red_green = cv2.subtract(red, green, dtype=depth)
    # Twice yellow-blue, in whole numbers: red + green - 2 blue.
    yellow_blue = cv2.subtract(cv2.add(red, green, dtype=depth), cv2.add(blue, blue, dtype=depth), dtype=depth)
    (mean_rg, std_rg), (mean_yb, std_yb) = (
        (float(value[0, 0]) for value in cv2.meanStdDev(plane)) for plane in (red_green, yellow_blue)
    )
    spread, offset = np.hypot(std_rg, std_yb / 2), np.hypot(mean_rg, mean_yb / 2)
    return _finite(float(spread + 0.3 * offset) * 255 / white(rgb.dtype))


def largest_std(pixels: Pixels) -> float:
    """Returns the largest standard deviation of any channel, as a fraction of white: 0 for a picture of one colour."""
    return max(mean_and_std(pixels)[1])


def mean_and_std(pixels: Pixels) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of each channel, as fractions of white."""
    planes = [pixels] if pixels.shape[2] <= 4 else [np.ascontiguousarray(plane) for plane in np.moveaxis(pixels, 2, 0)]
    pairs = [cv2.meanStdDev(plane) for plane in planes]
    both = np.concatenate([np.hstack(pair) for pair in pairs]) / white(pixels.dtype)
    if not np.isfinite(both).all():
        raise _not_finite()
    rounded = both.astype(np.float32)
    return rounded[:, 0].tolist(), rounded[:, 1].tolist()


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise _not_finite()
    return float(np.float32(value))


def _not_finite() -> BadPicture:
    return BadPicture(NOT_FINITE, "the picture contains NaN or infinity, so no score can be computed")


#: Scores by their names in a side table; the first are functions of the grey picture, the others of its colours.
GREY_SCORES: Mapping[str, Callable[[Pixels], float]] = {
    "brightness": brightness,
    "brightness_p5": brightness_p5,
    "brightness_p99": brightness_p99,
    "contrast": contrast,
    "entropy": entropy,
    "sharpness": lambda grey_pixels: sharpness(within(grey_pixels)),
}
COLOUR_SCORES: Mapping[str, Callable[[Pixels], float]] = {
    "colourfulness": colourfulness,
    "largest_std": largest_std,
}


def score(name: str, pixels: Pixels) -> float:
    """Returns a score of a decoded picture by its name."""
    return GREY_SCORES[name](grey(pixels)) if name in GREY_SCORES else COLOUR_SCORES[name](pixels)
