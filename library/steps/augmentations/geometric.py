"""Augmentations that move pixels about and keep the size: turns, mirrors, shifts, shears, zooms.

Each that mixes pixels does so once, linearly, in one call of OpenCV. `fill` says what comes in from past the rim: a
constant as a fraction of white, "edge", "reflect" or "wrap", drawn as Keras and OpenCV draw them.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import cv2
import numpy as np
from pydantic import Field

from library.errors import BadPicture
from library.imaging.picture import Pixels
from library.randomness import Degrees, Probability, Ratios, factor, symmetric
from library.steps.arrays import Fill, Fraction, border, by_channel_groups, padded
from library.steps.base import register

#: A linear map of the plane, rows first: ((xx, xy), (yx, yy)).
Matrix: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

# OpenCV keeps coordinates in 16 bits when it warps.
_LONGEST_SIDE_PX = 32_766

_CHANCE = "probability that a picture is changed"
_FILL = "what comes in from past the rim"


@register("augmentation")
class Rotate:
    """Turn by a random angle about the middle.

    As torchvision's RandomRotation and Keras' rotation_range: the angle is drawn evenly, the size stays, and corners
    that leave the picture are lost.

    Raises:
        BadPicture: `too_large` past 32,766 pixels a side.
    """

    degrees: Annotated[
        Degrees, Field(description="most degrees either way, or [low, high]; positive is counter-clockwise")
    ]
    p: Annotated[Probability, Field(description=_CHANCE)] = 1.0
    fill: Annotated[Fill, Field(description=_FILL)] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if rng.random() >= self.p:
            return pixels
        return rotated(pixels, symmetric(self.degrees, rng), self.fill)


@register("augmentation")
class Flip:
    """Mirror left to right, top to bottom, or each by a chance of its own.

    As torchvision's RandomHorizontalFlip and RandomVerticalFlip and Keras' horizontal_flip and vertical_flip.
    """

    p: Annotated[Probability, Field(description="probability of each mirror")] = 0.5
    direction: Annotated[
        Literal["horizontal", "vertical", "both"],
        Field(description="horizontal swaps left and right, vertical top and bottom; both draws for each"),
    ] = "horizontal"

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        across = self.direction != "vertical" and rng.random() < self.p
        down = self.direction != "horizontal" and rng.random() < self.p
        if not across and not down:
            return pixels
        if pixels.shape[2] > 4:
            return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])
        flipped = np.asarray(cv2.flip(pixels, -1 if across and down else 1 if across else 0))
        return flipped.reshape(pixels.shape)


@register("augmentation")
class Shift:
    """Move sideways and up or down, by whole pixels.

    As torchvision's RandomAffine(translate=...) and Keras' width_shift_range and height_shift_range; Keras also moves
    by parts of a pixel, which blurs.
    """

    x: Annotated[Fraction, Field(description="most sideways, either way, as a fraction of the width")] = 0.1
    y: Annotated[Fraction, Field(description="most up or down, as a fraction of the height")] = 0.1
    p: Annotated[Probability, Field(description=_CHANCE)] = 1.0
    fill: Annotated[Fill, Field(description=_FILL)] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if rng.random() >= self.p:
            return pixels
        height, width = pixels.shape[:2]
        right, down = round(symmetric(self.x * width, rng)), round(symmetric(self.y * height, rng))
        return shifted(pixels, right, down, self.fill)


@register("augmentation")
class Shear:
    """Slant by a random angle about the middle.

    As torchvision's RandomAffine(shear=...) and Keras' shear_range. Along x, rows slide over each other; along y,
    columns do; `both` draws an angle for each.

    Raises:
        BadPicture: `too_large` past 32,766 pixels a side.
    """

    degrees: Annotated[Annotated[float, Field(ge=0, le=80)], Field(description="greatest slant either way, in degrees")]
    axis: Annotated[Literal["x", "y", "both"], Field(description="the axis along which pixels slide")] = "x"
    p: Annotated[Probability, Field(description=_CHANCE)] = 1.0
    fill: Annotated[Fill, Field(description=_FILL)] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if rng.random() >= self.p:
            return pixels
        x = math.tan(math.radians(symmetric(self.degrees, rng))) if self.axis != "y" else 0.0
        y = math.tan(math.radians(symmetric(self.degrees, rng))) if self.axis != "x" else 0.0
        return sheared(pixels, x, y, self.fill)


@register("augmentation")
class Zoom:
    """Zoom in or out about the middle, by one factor for both sides.

    The factor is drawn evenly; above 1 enlarges, as torchvision's RandomAffine(scale=...). Keras' zoom_range counts the
    other way round (a factor above 1 shows more of the scene) and draws one for each side.

    Raises:
        BadPicture: `too_large` past 32,766 pixels a side.
    """

    amount: Annotated[
        Annotated[float, Field(ge=0, lt=1)] | Ratios,
        Field(description="a: factors from 1 - a to 1 + a; or [low, high], where [1, 1.5] only enlarges"),
    ]
    p: Annotated[Probability, Field(description=_CHANCE)] = 1.0
    fill: Annotated[Fill, Field(description=_FILL)] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if rng.random() >= self.p:
            return pixels
        scale = factor(self.amount, rng)
        return warped(pixels, ((scale, 0.0), (0.0, scale)), self.fill)


def rotated(pixels: Pixels, degrees: float, fill: float | str) -> Pixels:
    """Turned counter-clockwise about the middle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return warped(pixels, ((cos, sin), (-sin, cos)), fill)


def sheared(pixels: Pixels, x: float, y: float, fill: float | str) -> Pixels:
    """Slanted about the middle: x pixels sideways a row, y pixels down a column."""
    return warped(pixels, ((1.0, x), (y, 1.0 + x * y)), fill)


def shifted(pixels: Pixels, right: int, down: int, fill: float | str) -> Pixels:
    """Moved by whole pixels; no pixel is mixed."""
    if right == 0 and down == 0:
        return pixels
    height, width = pixels.shape[:2]
    wide = padded(pixels, (max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0)), fill)
    top, left = max(-down, 0), max(-right, 0)
    return np.ascontiguousarray(wide[top : top + height, left : left + width])


def warped(pixels: Pixels, matrix: Matrix, fill: float | str) -> Pixels:
    """A linear map about the middle of the picture, read linearly between pixels.

    Args:
        pixels: height x width x channels; of uint8, uint16 or float32.
        matrix: where a point goes, from the middle; x to the right, y down.
        fill: what lies past the rim.

    Raises:
        BadPicture: `too_large` past 32,766 pixels a side.
    """
    (xx, xy), (yx, yy) = matrix
    if (xx, xy, yx, yy) == (1, 0, 0, 1):
        return pixels
    height, width = pixels.shape[:2]
    if max(height, width) > _LONGEST_SIDE_PX:
        raise BadPicture(
            "too_large", f"{width}x{height}; pictures of up to {_LONGEST_SIDE_PX:,} pixels a side are warped"
        )
    x, y = (width - 1) / 2, (height - 1) / 2
    forward = np.array([[xx, xy, x - xx * x - xy * y], [yx, yy, y - yx * x - yy * y]])
    code, value = border(fill, pixels.dtype)
    return by_channel_groups(
        lambda group: cv2.warpAffine(
            group, forward, (width, height), flags=cv2.INTER_LINEAR, borderMode=code, borderValue=(value,) * 4
        ),
        pixels,
        4,
    )
