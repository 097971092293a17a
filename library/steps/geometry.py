"""Filters that change the size or the orientation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import cv2
import numpy as np
from pydantic import Field, model_validator

from library.errors import BadPicture
from library.imaging.codec import DEFAULT_LIMITS
from library.imaging.picture import Pixels
from library.steps.arrays import BORDER_CODES, Fraction, by_channel_groups, saturated, white
from library.steps.base import register
from library.steps.moves import Move, cut, moved, padding, resizing, size_of

Side: TypeAlias = Annotated[int, Field(ge=1, le=65535)]

_INTERPOLATIONS = {"nearest": cv2.INTER_NEAREST_EXACT, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


@register("filter")
class Resize:
    """Resize by the short side (keeping the aspect ratio), to an exact size, or to fit into a box.

    - `short_side`: the short side becomes `size`; the long side is scaled and rounded down, as in torchvision.
    - `fit`: the largest size with the same aspect ratio that fits into `size` (a square, or height and width).
    - `exact`: height and width become `size`; the aspect ratio may change.

    With `antialias`, each side that shrinks is averaged over the area of every new pixel (OpenCV's INTER_AREA, Pillow's
    BOX), which avoids aliasing; `interpolation` applies to sides that grow. Without it, `interpolation` uses a few old
    pixels for each new one; use `nearest` for label maps. `cubic` may overshoot: integers saturate, float32 is not
    clipped.

    Raises:
        BadPicture: `too_large` if the result would exceed the limit of pixels.
    """

    size: Annotated[Side | tuple[Side, Side], Field(description="pixels: one side, or [height, width]")]
    mode: Annotated[Literal["short_side", "exact", "fit"], Field(description="what `size` means")] = "short_side"
    interpolation: Annotated[Literal["nearest", "linear", "cubic"], Field(description="how pixels are computed")] = (
        "linear"
    )
    antialias: Annotated[
        bool | None, Field(description="average sides that shrink (default: True, but False for nearest)")
    ] = None
    enlarge: Annotated[bool, Field(description="False: smaller pictures are unchanged")] = True

    @model_validator(mode="after")
    def _check(self) -> Resize:
        if self.antialias is None:
            object.__setattr__(self, "antialias", self.interpolation != "nearest")
        if self.antialias and self.interpolation == "nearest":
            raise ValueError("'antialias' averages pixels but nearest must not mix them; use one of them")
        if self.mode == "short_side" and isinstance(self.size, tuple):
            raise ValueError('\'size\' should be one number for the short side, or add mode="exact" or mode="fit"')
        if self.mode == "exact" and not self.enlarge:
            raise ValueError("'enlarge' has no effect with mode=\"exact\"")
        return self

    def __call__(self, pixels: Pixels) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels)))

    def move(self, height: int, width: int) -> Move | None:
        """Where a picture of this size goes; None if its size is right."""
        target = self.target(height, width)
        if target == (height, width):
            return None
        if target[0] * target[1] > DEFAULT_LIMITS.max_pixels:
            detail = (
                f"{width}x{height} would become {target[1]}x{target[0]}; "
                f"the limit is {DEFAULT_LIMITS.max_pixels:,} pixels"
            )
            raise BadPicture("too_large", detail)
        return resizing((height, width), target, lambda pixels: self._resized(pixels, *target))

    def _resized(self, pixels: Pixels, height: int, width: int) -> Pixels:
        old_height, old_width = pixels.shape[:2]
        code = _INTERPOLATIONS[self.interpolation]
        if self.antialias:
            # In one call OpenCV would average both sides or neither.
            smaller = min(width, old_width), min(height, old_height)
            if smaller != (old_width, old_height):
                pixels = by_channel_groups(
                    lambda group: cv2.resize(group, smaller, interpolation=cv2.INTER_AREA), pixels, 4
                )
        if pixels.shape[:2] == (height, width):
            return pixels
        return by_channel_groups(lambda group: cv2.resize(group, (width, height), interpolation=code), pixels, 4)

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that a picture of this size gets."""
        box = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if self.mode == "exact":
            return box
        if self.mode == "short_side":
            short = min(height, width)
            if not self.enlarge and short <= box[0]:
                return height, width
            return box[0] * height // short, box[0] * width // short
        if not self.enlarge and height <= box[0] and width <= box[1]:
            return height, width
        if box[0] * width < box[1] * height:
            return box[0], max(1, round(box[0] * width / height))
        return max(1, round(box[1] * height / width)), box[1]


@register("filter")
class CenterCrop:
    """Cut out the middle; if the margin is odd, the extra pixel is on the right or at the bottom.

    Raises:
        BadPicture: `too_small` if the picture is smaller than the box; `resize` it first.
    """

    size: Annotated[Side | tuple[Side, Side], Field(description="pixels: a square's side, or [height, width]")]

    def __call__(self, pixels: Pixels) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels)))

    def move(self, height: int, width: int) -> Move:
        """Where a picture of this size goes."""
        rows, columns = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        return _cut(height, width, (height - rows) // 2, (width - columns) // 2, rows, columns)


@register("filter")
class Crop:
    """Cut out a box.

    Raises:
        BadPicture: `too_small` if the box extends beyond the picture.
    """

    top: Annotated[int, Field(ge=0, le=65535, description="first row, in pixels from the top")]
    left: Annotated[int, Field(ge=0, le=65535, description="first column, in pixels from the left")]
    height: Annotated[Side, Field(description="rows, in pixels")]
    width: Annotated[Side, Field(description="columns, in pixels")]

    def __call__(self, pixels: Pixels) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels)))

    def move(self, height: int, width: int) -> Move:
        """Where a picture of this size goes."""
        return _cut(height, width, self.top, self.left, self.height, self.width)


@register("filter")
class PadSquare:
    """Pad the short side on both ends to a square; an odd pixel goes to the right or the bottom.

    Raises:
        BadPicture: `too_large` if the square would exceed the limit of pixels.
    """

    border: Annotated[
        Literal["constant", "reflect_101", "reflect", "replicate"], Field(description="what fills the padding")
    ] = "constant"
    fill: Annotated[Fraction | None, Field(description="for constant: the value, as a fraction of white (0)")] = None

    @model_validator(mode="after")
    def _fill_in(self) -> PadSquare:
        if self.border == "constant" and self.fill is None:
            object.__setattr__(self, "fill", 0.0)
        if self.border != "constant" and self.fill is not None:
            raise ValueError(f'\'fill\' has no effect with border="{self.border}"; it belongs to "constant"')
        return self

    def __call__(self, pixels: Pixels) -> Pixels:
        return moved(pixels, self.move(*size_of(pixels)))

    def move(self, height: int, width: int) -> Move | None:
        """Where a picture of this size goes; None if it is square."""
        side = max(height, width)
        if height == width:
            return None
        if side**2 > DEFAULT_LIMITS.max_pixels:
            detail = f"a square of {side}x{side} pixels; the limit is {DEFAULT_LIMITS.max_pixels:,} pixels"
            raise BadPicture("too_large", detail)
        top, left = (side - height) // 2, (side - width) // 2
        return padding(top, left, (side, side), self._padded, mask=self.fill is None)

    def _padded(self, pixels: Pixels) -> Pixels:
        height, width, channels = pixels.shape
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        if self.fill is not None:
            value = saturated(np.full((1, 1), self.fill), pixels.dtype, white(pixels.dtype))[0, 0]
            square = np.full((side, side, channels), value, pixels.dtype)
            square[top : top + height, left : left + width] = pixels
            return square
        ends = top, side - height - top, left, side - width - left
        code = BORDER_CODES[self.border]
        return by_channel_groups(lambda group: cv2.copyMakeBorder(group, *ends, code), pixels)


@register("filter")
class Rotate90:
    """Rotate by quarter turns, counter-clockwise (as `numpy.rot90`), without mixing pixels."""

    turns: Annotated[Literal[1, 2, 3], Field(description="quarter turns, counter-clockwise")] = 1

    def __call__(self, pixels: Pixels) -> Pixels:
        return self._turned(pixels)

    def move(self, height: int, width: int) -> Move:
        """Where a picture of this size goes."""
        matrix, size = {
            1: (((0, 1, 0), (-1, 0, width)), (width, height)),
            2: (((-1, 0, width), (0, -1, height)), (height, width)),
            3: (((0, -1, height), (1, 0, 0)), (width, height)),
        }[self.turns]
        return Move(matrix, size, self._turned, self._turned)

    def _turned(self, pixels: Pixels) -> Pixels:
        if pixels.shape[2] > 4:
            return np.ascontiguousarray(np.rot90(pixels, self.turns))
        turned: Any = cv2.rotate(pixels, _ROTATIONS[self.turns])
        return turned if turned.ndim == 3 else turned[:, :, None]


_ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


def _cut(height: int, width: int, top: int, left: int, rows: int, columns: int) -> Move:
    """Cuts a box out of a picture of height x width."""
    if top < 0 or left < 0 or top + rows > height or left + columns > width:
        box = f"{columns}x{rows} at x={left}, y={top}" if top >= 0 and left >= 0 else f"{columns}x{rows}"
        raise BadPicture("too_small", f"a crop of {box} from a picture of {width}x{height}")
    return cut(top, left, rows, columns)
