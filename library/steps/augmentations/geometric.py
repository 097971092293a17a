"""Augmentations that move pixels and keep the size: rotations, flips, shifts, shears, zooms.

Those that mix pixels interpolate linearly, once, in one call of OpenCV. `fill` says what is outside the picture: a
constant as a fraction of white, "edge", "reflect" or "wrap", as in Keras and OpenCV.
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
from library.steps.moves import Move, moved, size_of

#: A linear map of the plane by rows: ((xx, xy), (yx, yy)).
Matrix: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

#: OpenCV's warps store coordinates in 16 bits.
MAX_SIDE_PX = 32_766

_P = "probability that a picture is changed"
_FILL = "what is outside the picture: a fraction of white, edge, reflect or wrap"


@register("augmentation")
class Rotate:
    """Rotate by a random angle about the centre.

    Like torchvision's RandomRotation and Keras' rotation_range: the angle is drawn uniformly, the size is kept, and
    corners that leave the picture are lost.

    Raises:
        BadPicture: `too_large` above 32,766 pixels a side.
    """

    degrees: Annotated[
        Degrees, Field(description="maximum in both directions, or [low, high]; positive is counter-clockwise")
    ]
    p: Annotated[Probability, Field(description=_P)] = 1.0
    fill: Annotated[Fill, Field(description=_FILL)] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels), rng))

    def move(self, height: int, width: int, rng: np.random.Generator) -> Move | None:
        """Draws where a picture of this size goes; None if it stays."""
        if rng.random() >= self.p:
            return None
        return rotation(symmetric(self.degrees, rng), height, width, self.fill)


@register("augmentation")
class Flip:
    """Flip left to right, top to bottom, or each with its own probability.

    Like torchvision's RandomHorizontalFlip and RandomVerticalFlip and Keras' horizontal_flip and vertical_flip.
    """

    p: Annotated[Probability, Field(description="probability of each flip")] = 0.5
    direction: Annotated[
        Literal["horizontal", "vertical", "both"],
        Field(description="horizontal swaps left and right, vertical top and bottom; both draws for each"),
    ] = "horizontal"

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels), rng))

    def move(self, height: int, width: int, rng: np.random.Generator) -> Move | None:
        """Draws where a picture of this size goes; None if it stays."""
        across = self.direction != "vertical" and rng.random() < self.p
        down = self.direction != "horizontal" and rng.random() < self.p
        if not across and not down:
            return None

        def flip(pixels: Pixels) -> Pixels:
            if pixels.shape[2] > 4:
                return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])
            return np.asarray(cv2.flip(pixels, -1 if across and down else 1 if across else 0)).reshape(pixels.shape)

        matrix = ((-1 if across else 1, 0, width * across), (0, -1 if down else 1, height * down))
        return Move(matrix, (height, width), flip, flip)


@register("augmentation")
class Shift:
    """Shift sideways and up or down by whole pixels.

    Like torchvision's RandomAffine(translate=...) and Keras' width_shift_range and height_shift_range; Keras also
    shifts by fractions of a pixel, which blurs.
    """

    x: Annotated[Fraction, Field(description="maximum left or right, as a fraction of the width")] = 0.1
    y: Annotated[Fraction, Field(description="maximum up or down, as a fraction of the height")] = 0.1
    p: Annotated[Probability, Field(description=_P)] = 1.0
    fill: Annotated[Fill, Field(description=_FILL)] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels), rng))

    def move(self, height: int, width: int, rng: np.random.Generator) -> Move | None:
        """Draws where a picture of this size goes; None if it stays."""
        if rng.random() >= self.p:
            return None
        right, down = round(symmetric(self.x * width, rng)), round(symmetric(self.y * height, rng))
        return shift(right, down, height, width, self.fill)


@register("augmentation")
class Shear:
    """Shear by a random angle about the centre.

    Like torchvision's RandomAffine(shear=...) and Keras' shear_range. Along x, rows slide over each other; along y,
    columns do; `both` draws an angle for each.

    Raises:
        BadPicture: `too_large` above 32,766 pixels a side.
    """

    degrees: Annotated[
        Annotated[float, Field(ge=0, le=80)], Field(description="maximum angle in both directions, in degrees")
    ]
    axis: Annotated[Literal["x", "y", "both"], Field(description="the axis along which pixels slide")] = "x"
    p: Annotated[Probability, Field(description=_P)] = 1.0
    fill: Annotated[Fill, Field(description=_FILL)] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels), rng))

    def move(self, height: int, width: int, rng: np.random.Generator) -> Move | None:
        """Draws where a picture of this size goes; None if it stays."""
        if rng.random() >= self.p:
            return None
        x = math.tan(math.radians(symmetric(self.degrees, rng))) if self.axis != "y" else 0.0
        y = math.tan(math.radians(symmetric(self.degrees, rng))) if self.axis != "x" else 0.0
        return shear(x, y, height, width, self.fill)


@register("augmentation")
class Zoom:
    """Zoom in or out about the centre, by the same factor for both sides.

    The factor is drawn uniformly; above 1 enlarges, like torchvision's RandomAffine(scale=...). Keras' zoom_range has
    the inverse meaning (a factor above 1 shows more of the scene) and draws a factor for each side.

    Raises:
        BadPicture: `too_large` above 32,766 pixels a side.
    """

    amount: Annotated[
        Annotated[float, Field(ge=0, lt=1)] | Ratios,
        Field(description="a: factors from 1 - a to 1 + a; or [low, high], where [1, 1.5] only enlarges"),
    ]
    p: Annotated[Probability, Field(description=_P)] = 1.0
    fill: Annotated[Fill, Field(description=_FILL)] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels), rng))

    def move(self, height: int, width: int, rng: np.random.Generator) -> Move | None:
        """Draws where a picture of this size goes; None if it stays."""
        if rng.random() >= self.p:
            return None
        scale = factor(self.amount, rng)
        return warp(((scale, 0.0), (0.0, scale)), height, width, self.fill)


def rotation(degrees: float, height: int, width: int, fill: float | str) -> Move | None:
    """Rotates counter-clockwise about the centre; raises as `warp`."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return warp(((cos, sin), (-sin, cos)), height, width, fill)


def shear(x: float, y: float, height: int, width: int, fill: float | str) -> Move | None:
    """Shears about the centre: each row moves x pixels further sideways, each column y pixels further down."""
    return warp(((1.0, x), (y, 1.0 + x * y)), height, width, fill)


def shift(right: int, down: int, height: int, width: int, fill: float | str) -> Move | None:
    """Shifts by whole pixels, without mixing them; negative is left and up."""
    if right == 0 and down == 0:
        return None
    top, left = max(-down, 0), max(-right, 0)

    def shifted(pixels: Pixels, outside: float | str) -> Pixels:
        wide = padded(pixels, (max(down, 0), top), (max(right, 0), left), outside)
        return np.ascontiguousarray(wide[top : top + height, left : left + width])

    return Move(
        ((1, 0, right), (0, 1, down)),
        (height, width),
        lambda pixels: shifted(pixels, fill),
        lambda mask: shifted(mask, _outside_mask(fill)),
    )


def warp(matrix: Matrix, height: int, width: int, fill: float | str) -> Move | None:
    """Applies a linear map about the centre of the picture, with linear interpolation, and the nearest value for masks.

    Args:
        matrix: maps a point, relative to the centre, to its new place; x to the right, y down.
        height: of the picture.
        width: of the picture.
        fill: what is outside the picture.

    Raises:
        BadPicture: `too_large` above 32,766 pixels a side.
    """
    (xx, xy), (yx, yy) = matrix
    if (xx, xy, yx, yy) == (1, 0, 0, 1):
        return None
    if max(height, width) > MAX_SIDE_PX:
        raise BadPicture("too_large", f"{width}x{height}; the limit for this step is {MAX_SIDE_PX:,} pixels a side")
    x, y = (width - 1) / 2, (height - 1) / 2
    forward = np.array([[xx, xy, x - xx * x - xy * y], [yx, yy, y - yx * x - yy * y]])

    def warped(pixels: Pixels, flags: int, outside: float | str) -> Pixels:
        code, value = border(outside, pixels.dtype)
        return by_channel_groups(
            lambda group: cv2.warpAffine(
                group, forward, (width, height), flags=flags, borderMode=code, borderValue=(value,) * 4
            ),
            pixels,
            4,
        )

    x, y = width / 2, height / 2  # OpenCV counts from the centre of the first pixel, a move from its corner
    return Move(
        ((xx, xy, x - xx * x - xy * y), (yx, yy, y - yx * x - yy * y)),
        (height, width),
        lambda pixels: warped(pixels, cv2.INTER_LINEAR, fill),
        lambda mask: warped(mask, cv2.INTER_NEAREST, _outside_mask(fill)),
    )


def _outside_mask(fill: float | str) -> float | str:
    """What is outside a mask: 0 where the picture is filled with a constant, else what is outside the picture."""
    return fill if isinstance(fill, str) else 0.0
