"""Where a step moves the parts of a picture, described once: its pixels, its masks and its boxes follow from it.

A step that moves pixels makes a `Move` from the picture's size and its random draw, and the same move is applied to
everything that belongs to the picture. All moves are affine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np

from library.imaging.picture import Pixels
from library.steps.arrays import by_channel_groups

#: ((xx, xy, x0), (yx, yy, y0)): the point (x, y) goes to (xx * x + xy * y + x0, yx * x + yy * y + y0). In pixels from
#: the top left corner of the picture, so the centre of the first pixel is at (0.5, 0.5).
Affine: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Move:
    """What a step does to the places in one picture.

    Attributes:
        matrix: maps a point of the picture before to the picture after.
        size: height and width after.
        pixels: moves the picture (height x width x channels).
        mask: moves a mask (height x width x channels) without mixing its values; 0 comes from outside, unless the
            picture is continued there (edge, reflect, wrap).
    """

    matrix: Affine
    size: tuple[int, int]
    pixels: Callable[[Pixels], Pixels]
    mask: Callable[[Pixels], Pixels]


#: The moves of one or several steps, in order.
Moves: TypeAlias = tuple[Move, ...]


def size_of(pixels: Pixels) -> tuple[int, int]:
    """Height and width of a picture."""
    return pixels.shape[0], pixels.shape[1]


def moved(pixels: Pixels, move: Move | None) -> Pixels:
    """The pixels after a move; the very same array where there is none."""
    return pixels if move is None else move.pixels(pixels)


def cut(top: int, left: int, height: int, width: int) -> Move:
    """Cuts out a box, which must lie in the picture."""

    def cut_out(pixels: Pixels) -> Pixels:
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])

    return Move(((1, 0, -left), (0, 1, -top)), (height, width), cut_out, cut_out)


def padding(top: int, left: int, size: tuple[int, int], pad: Callable[[Pixels], Pixels], mask: bool) -> Move:
    """Adds a rim of `top` rows above and `left` columns to the left, up to `size` (height and width).

    Args:
        top: rows above.
        left: columns to the left.
        size: height and width of the result.
        pad: pads the picture.
        mask: whether `pad` pads a mask too; otherwise its rim is 0.
    """

    def with_zeros(pixels: Pixels) -> Pixels:
        result = np.zeros((*size, pixels.shape[2]), pixels.dtype)
        result[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return result

    return Move(((1, 0, left), (0, 1, top)), size, pad, pad if mask else with_zeros)


def resizing(before: tuple[int, int], after: tuple[int, int], resize: Callable[[Pixels], Pixels]) -> Move:
    """Scales from one height and width to another."""

    def nearest(mask: Pixels) -> Pixels:
        size = after[1], after[0]
        return by_channel_groups(lambda group: cv2.resize(group, size, interpolation=cv2.INTER_NEAREST_EXACT), mask, 4)

    return Move(((after[1] / before[1], 0, 0), (0, after[0] / before[0], 0)), after, resize, nearest)


def windows(
    size: tuple[int, int],
    window: tuple[int, int],
    stride: int,
    offset: tuple[int, int],
    combine: Callable[[Pixels], Pixels],
) -> Move:
    """Makes each new pixel from a window of old ones, as pooling and strided convolution do.

    Args:
        size: height and width of the result.
        window: height and width of a window.
        stride: pixels from one window to the next.
        offset: row and column of the first window; negative where it begins in padding.
        combine: computes the picture.
    """

    def middles(mask: Pixels) -> Pixels:
        # The middle pixel of each window; of an even one, that after the middle.
        places = [
            np.clip(offset[axis] + window[axis] // 2 + stride * np.arange(size[axis]), 0, mask.shape[axis] - 1)
            for axis in (0, 1)
        ]
        return np.ascontiguousarray(mask[np.ix_(places[0], places[1])])

    y, x = (0.5 - (offset[axis] + window[axis] / 2) / stride for axis in (0, 1))
    return Move(((1 / stride, 0, x), (0, 1 / stride, y)), size, combine, middles)
