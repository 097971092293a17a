"""Augmentations that crop the picture or erase a rectangle of it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from library.errors import BadPicture
from library.imaging.picture import Pixels
from library.randomness import AreaFractions, Probability, Ratios, uniform
from library.steps.arrays import Fill, Fraction, padded, saturated, white
from library.steps.base import register
from library.steps.geometry import Resize, Side
from library.steps.moves import Moves, cut, padding, size_of

#: Boxes that are drawn before the last resort.
ATTEMPTS = 10


@register("augmentation")
class RandomCrop:
    """Cut out a box at a random place, after padding; usual for CIFAR: `random_crop(32, padding=4)`.

    Like torchvision's RandomCrop.

    Raises:
        BadPicture: `too_small` if the padded picture is smaller than the box; `resize` it first.
    """

    size: Annotated[Side | tuple[Side, Side], Field(description="pixels: a square's side, or [height, width]")]
    padding: Annotated[int, Field(ge=0, le=4096, description="pixels added on every side before the cut")] = 0
    fill: Annotated[Fill, Field(description="what fills the padding")] = 0.0

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return self.traced(pixels, rng)[0]

    def traced(self, pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, Moves]:
        """The result, and how it was moved."""
        moves = self._moves(*size_of(pixels), rng)
        for move in moves:
            pixels = move.pixels(pixels)
        return pixels, moves

    def _moves(self, height: int, width: int, rng: np.random.Generator) -> Moves:
        rows, columns = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        room_y, room_x = height + 2 * self.padding - rows, width + 2 * self.padding - columns
        if room_y < 0 or room_x < 0:
            detail = f"a crop of {columns}x{rows} from a picture of {width}x{height}"
            raise BadPicture("too_small", f"{detail} with {self.padding} pixels of padding")
        box = cut(int(rng.integers(room_y + 1)), int(rng.integers(room_x + 1)), rows, columns)
        if not self.padding:
            return () if room_y == room_x == 0 else (box,)
        size = height + 2 * self.padding, width + 2 * self.padding
        return padding(self.padding, self.padding, size, self._padded, mask=isinstance(self.fill, str)), box

    def _padded(self, pixels: Pixels) -> Pixels:
        return padded(pixels, self.padding, self.padding, self.fill)


@register("augmentation")
class RandomResizedCrop:
    """Cut out a box of random area and aspect ratio and resize it, as is usual for ImageNet.

    Szegedy et al. 2015 (Going deeper with convolutions, section 6), drawn like torchvision's RandomResizedCrop: area
    uniformly, aspect ratio log-uniformly; after ten tries, the largest central box with an allowed aspect ratio.
    Sides that shrink are averaged over the area of each new pixel (see `resize`).
    """

    size: Annotated[Side | tuple[Side, Side], Field(description="pixels: a square's side, or [height, width]")]
    scale: Annotated[
        AreaFractions, Field(description="minimum and maximum area of the box, as fractions of the picture's")
    ] = (
        0.08,
        1.0,
    )
    ratio: Annotated[Ratios, Field(description="minimum and maximum width / height of the box")] = (3 / 4, 4 / 3)

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return self.traced(pixels, rng)[0]

    def traced(self, pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, Moves]:
        """The result, and how it was moved."""
        box = self._box(pixels.shape[0], pixels.shape[1], rng)
        size = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        resize = _resizer(size).move(box[2], box[3])
        moves = (cut(*box),) if resize is None else (cut(*box), resize)
        for move in moves:
            pixels = move.pixels(pixels)
        return pixels, moves

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(ATTEMPTS):
            rows, columns = _rectangle(height * width, self.scale, self.ratio, rng)
            if 0 < rows <= height and 0 < columns <= width:
                return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns
        return self.central_box(height, width)

    def central_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the largest central box with an allowed aspect ratio."""
        shape = min(max(width / height, self.ratio[0]), self.ratio[1])
        rows, columns = min(height, max(1, round(width / shape))), min(width, max(1, round(height * shape)))
        return (height - rows) // 2, (width - columns) // 2, rows, columns


@register("augmentation", still=True)
class RandomErase:
    """Replace a random rectangle by noise or a constant.

    Zhong et al. 2020 (Random Erasing Data Augmentation), with the paper's values and its best fill: uniform noise
    from black to white. The aspect ratio is drawn log-uniformly like torchvision's RandomErasing, so that tall and wide
    rectangles are equally frequent; the paper draws it uniformly. A rectangle that does not fit after ten tries is cut
    to the picture's size.
    """

    p: Annotated[Probability, Field(description="probability that a picture is changed")] = 0.5
    scale: Annotated[AreaFractions, Field(description="minimum and maximum area, as fractions of the picture's")] = (
        0.02,
        0.4,
    )
    ratio: Annotated[Ratios, Field(description="minimum and maximum height / width")] = (0.3, 1 / 0.3)
    fill: Annotated[Fraction | Literal["noise"], Field(description="noise, or a constant as a fraction of white")] = (
        "noise"
    )

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        if rng.random() >= self.p:
            return pixels
        height, width, channels = pixels.shape
        rows = columns = 0
        for _ in range(ATTEMPTS):
            columns, rows = _rectangle(height * width, self.scale, self.ratio, rng)
            if rows <= height and columns <= width:
                break
        rows, columns = min(max(rows, 1), height), min(max(columns, 1), width)
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        erased = pixels.copy()
        erased[top : top + rows, left : left + columns] = self._filling((rows, columns, channels), pixels.dtype, rng)
        return erased

    def _filling(self, shape: tuple[int, int, int], dtype: np.dtype[Any], rng: np.random.Generator) -> Pixels:
        if isinstance(self.fill, float | int):
            return saturated(np.full((1, 1, 1), self.fill), dtype, white(dtype))
        if dtype == np.float32:
            return rng.random(shape, np.float32)
        return rng.integers(0, int(white(dtype)), shape, dtype, endpoint=True)


def _rectangle(
    area: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int]:
    """Draws two sides: their product is a fraction `scale` of `area`, and second / first is in `ratio`."""
    size = area * uniform(*scale, rng)
    shape = math.exp(uniform(math.log(ratio[0]), math.log(ratio[1]), rng))
    return round(math.sqrt(size / shape)), round(math.sqrt(size * shape))


@lru_cache(maxsize=16)
def _resizer(size: tuple[int, int]) -> Resize:
    return Resize(size, mode="exact")
