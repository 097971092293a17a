"""Batched forms of steps that move pixels: turns, warps, shifts, crops and sizes. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture
from library.imaging.codec import DEFAULT_LIMITS
from library.steps.augmentations.crops import ATTEMPTS, RandomCrop, RandomResizedCrop
from library.steps.augmentations.geometric import MAX_SIDE_PX, Flip, Rotate, Shear, Shift, Zoom
from library.steps.geometry import CenterCrop, Crop, PadSquare, Resize, Rotate90
from library.training.augmenting.draft import Draft
from library.training.augmenting.operations import Move, Transpose, Warp
from library.training.augmenting.operations import Resize as ResizeBoxes
from library.training.augmenting.random_parameters import (
    Floats,
    chosen,
    factors,
    level,
    mapped,
    pair,
    rectangles,
    symmetric,
    within,
)
from library.training.augmenting.streams import Rows

# The names of fills that continue a picture as borders of filters do.
_BORDER_FILLS = {"reflect_101": "reflect_101", "reflect": "reflect", "replicate": "edge"}


def rotate_step(step: Rotate, draft: Draft, rows: Rows) -> None:
    rows = chosen(step.p, draft, rows)
    rotate(draft, rows, symmetric(step.degrees, draft, rows), step.fill)


def shear_step(step: Shear, draft: Draft, rows: Rows) -> None:
    rows = chosen(step.p, draft, rows)
    slopes = [np.zeros(len(rows)), np.zeros(len(rows))]
    for number, axis in enumerate("xy"):
        if step.axis in (axis, "both"):
            slopes[number] = mapped(lambda d: math.tan(math.radians(d)), symmetric(step.degrees, draft, rows))
    shear(draft, rows, slopes[0], slopes[1], step.fill)


def zoom_step(step: Zoom, draft: Draft, rows: Rows) -> None:
    rows = chosen(step.p, draft, rows)
    scales, zeros = factors(step.amount, draft, rows), np.zeros(len(rows))
    _warp(draft, rows, (scales, zeros, zeros, scales), step.fill)


def rotate(draft: Draft, rows: Rows, degrees: Floats, fill: float | str) -> None:
    cos = mapped(lambda d: math.cos(math.radians(d)), degrees)
    sin = mapped(lambda d: math.sin(math.radians(d)), degrees)
    _warp(draft, rows, (cos, sin, -sin, cos), fill)


def shear(draft: Draft, rows: Rows, x: Floats, y: Floats, fill: float | str) -> None:
    _warp(draft, rows, (np.ones(len(rows)), x, y, 1.0 + x * y), fill)


def _warp(draft: Draft, rows: Rows, matrix: tuple[Floats, Floats, Floats, Floats], fill: float | str) -> None:
    """Maps pictures linearly, as `library.steps.augmentations.geometric.warped`, and OpenCV's inverse of that map."""
    xx, xy, yx, yy = matrix
    moved = (xx != 1) | (xy != 0) | (yx != 0) | (yy != 1)
    large = moved & (draft.shapes[rows, :2].max(axis=1, initial=0) > MAX_SIDE_PX)

    def too_large(row: int) -> BadPicture:
        height, width = draft.shapes[row, :2].tolist()
        return BadPicture("too_large", f"{width}x{height}; the limit for this step is {MAX_SIDE_PX:,} pixels a side")

    draft.reject(rows[large], too_large)
    moved &= ~large
    rows, xx, xy, yx, yy = rows[moved], xx[moved], xy[moved], yx[moved], yy[moved]
    x, y = (draft.shapes[rows, 1] - 1) / 2, (draft.shapes[rows, 0] - 1) / 2
    to_x, to_y = x - xx * x - xy * y, y - yx * x - yy * y
    scale = 1 / (xx * yy - xy * yx)
    xx, yy, xy, yx = yy * scale, xx * scale, xy * -scale, yx * -scale
    to_x, to_y = -xx * to_x - xy * to_y, -yx * to_x - yy * to_y
    inverses = np.stack([xx, xy, to_x, yx, yy, to_y], axis=1).reshape(-1, 2, 3)
    value = fill if isinstance(fill, str) else level(fill)
    places = np.zeros(len(draft.shapes), np.int64)
    places[rows] = np.arange(len(rows))
    for _, same in draft.by_shape(rows):
        draft.add(Warp(same, inverses[places[same]], value))


def flip(step: Flip, draft: Draft, rows: Rows) -> None:
    none = np.zeros(len(rows), bool)
    across = none if step.direction == "vertical" else draft.streams.random(rows) < step.p
    down = none if step.direction == "horizontal" else draft.streams.random(rows) < step.p
    if not (across | down).any():
        return
    flips = np.zeros((len(draft.shapes), 2), bool)
    flips[rows] = np.stack([down, across], axis=1)
    for (height, width, _), same in draft.by_shape(rows):
        ys, xs = (
            np.where(flips[same, axis][:, None], np.arange(side)[::-1], np.arange(side))
            for axis, side in enumerate((height, width))
        )
        draft.add(Move(same, ys, xs, 0))


def shift_step(step: Shift, draft: Draft, rows: Rows) -> None:
    rows = chosen(step.p, draft, rows)
    height, width = draft.shapes[rows, 0], draft.shapes[rows, 1]
    # Both are drawn before either is used: first x, then y.
    right = np.rint(within(step.x * width, draft, rows)).astype(np.int64)
    down = np.rint(within(step.y * height, draft, rows)).astype(np.int64)
    shift(draft, rows, right, down, step.fill)


def shift(draft: Draft, rows: Rows, right: NDArray[Any], down: NDArray[Any], fill: float | str) -> None:
    shifts = np.zeros((len(draft.shapes), 2), np.int64)
    shifts[rows] = np.stack([down, right], axis=1)
    rows = rows[(right != 0) | (down != 0)]
    for (height, width, _), same in draft.by_shape(rows):
        ys, xs = (
            outside(np.arange(side) - shifts[same, axis][:, None], np.asarray([[side]]), fill)
            for axis, side in enumerate((height, width))
        )
        draft.add(Move(same, ys, xs, level(fill)))


def outside(indices: NDArray[np.int64], sides: NDArray[np.int64], fill: float | str) -> NDArray[np.int64]:
    """Indices of rows or columns as they lie in the picture; -1 for a constant. `sides` broadcasts to `indices`."""
    if fill == "edge":
        return np.clip(indices, 0, sides - 1)
    if fill == "wrap":
        return indices % sides
    if fill == "reflect_101":
        folded = indices % np.maximum(2 * sides - 2, 1)
        return np.minimum(folded, np.maximum(2 * sides - 2 - folded, 0))
    if fill == "reflect":
        folded = indices % (2 * sides)
        return np.minimum(folded, 2 * sides - 1 - folded)
    return np.where((indices < 0) | (indices >= sides), -1, indices)


def random_crop(step: RandomCrop, draft: Draft, rows: Rows) -> None:
    height, width = pair(step.size)
    padding = step.padding

    def too_small(row: int) -> BadPicture:
        old_height, old_width = draft.shapes[row, :2].tolist()
        detail = f"a crop of {width}x{height} from a picture of {old_width}x{old_height}"
        return BadPicture("too_small", f"{detail} with {padding} pixels of padding")

    room = draft.shapes[rows, :2] + 2 * padding - np.asarray([height, width])
    draft.reject(rows[(room < 0).any(axis=1)], too_small)
    fits = (room >= 0).all(axis=1)
    rows, room = rows[fits], room[fits]
    top, left = draft.streams.integers(rows, room[:, 0] + 1), draft.streams.integers(rows, room[:, 1] + 1)
    _cut(draft, rows, top - padding, left - padding, (height, width), step.fill)


def _cut(
    draft: Draft, rows: Rows, top: NDArray[Any], left: NDArray[Any], size: tuple[int, int], fill: float | str
) -> None:
    ys = outside(top[:, None] + np.arange(size[0]), draft.shapes[rows, :1], fill)
    xs = outside(left[:, None] + np.arange(size[1]), draft.shapes[rows, 1:2], fill)
    draft.add(Move(rows, ys, xs, level(fill)))


def crop(step: Crop, draft: Draft, rows: Rows) -> None:
    _fixed_cut(draft, rows, np.full((len(rows), 2), (step.top, step.left)), (step.height, step.width), placed=True)


def center_crop(step: CenterCrop, draft: Draft, rows: Rows) -> None:
    size = pair(step.size)
    _fixed_cut(draft, rows, (draft.shapes[rows, :2] - np.asarray(size)) // 2, size, placed=False)


def _fixed_cut(draft: Draft, rows: Rows, corners: NDArray[Any], size: tuple[int, int], *, placed: bool) -> None:
    beyond = ((corners < 0) | (corners + np.asarray(size) > draft.shapes[rows, :2])).any(axis=1)
    height, width = size

    def too_small(row: int) -> BadPicture:
        old_height, old_width = draft.shapes[row, :2].tolist()
        top, left = corners[0].tolist()
        box = f"{width}x{height} at x={left}, y={top}" if placed else f"{width}x{height}"
        return BadPicture("too_small", f"a crop of {box} from a picture of {old_width}x{old_height}")

    draft.reject(rows[beyond], too_small)
    _cut(draft, rows[~beyond], corners[~beyond, 0], corners[~beyond, 1], size, 0.0)


def random_resized_crop(step: RandomResizedCrop, draft: Draft, rows: Rows) -> None:
    sides = draft.shapes[rows, :2]
    boxes = np.zeros((len(rows), 4), np.int64)
    left_over = np.arange(len(rows))
    for _ in range(ATTEMPTS):
        drawn = rectangles(sides[left_over].prod(axis=1), step.scale, step.ratio, draft, rows[left_over])
        fits = ((drawn > 0) & (drawn <= sides[left_over])).all(axis=1)
        accepted, size = left_over[fits], drawn[fits]
        top, left = (
            draft.streams.integers(rows[accepted], sides[accepted, axis] - size[:, axis] + 1) for axis in (0, 1)
        )
        boxes[accepted] = np.stack([top, left, size[:, 0], size[:, 1]], axis=1)
        left_over = left_over[~fits]
        if not len(left_over):
            break
    for row in left_over.tolist():
        boxes[row] = step.central_box(*sides[row].tolist())
    _resize(draft, rows, boxes, pair(step.size))


def resize_step(step: Resize, draft: Draft, rows: Rows) -> None:
    for (height, width, _), same in list(draft.by_shape(rows)):
        size = step.target(height, width)
        if size == (height, width):
            continue
        if math.prod(size) > DEFAULT_LIMITS.max_pixels:
            detail = f"{width}x{height} would become {size[1]}x{size[0]}"
            limit = f"the limit is {DEFAULT_LIMITS.max_pixels:,} pixels"
            draft.reject(same, lambda row, text=f"{detail}; {limit}": BadPicture("too_large", text))
            continue
        _resize(draft, same, np.full((len(same), 4), (0, 0, height, width)), size)


def _resize(draft: Draft, rows: Rows, boxes: NDArray[np.int64], size: tuple[int, int]) -> None:
    draft.add(ResizeBoxes(rows, boxes, size))
    draft.shapes[rows, :2] = size


def rotate90(step: Rotate90, draft: Draft, rows: Rows) -> None:
    """Quarter turns: rows and columns change places, and one of them is reversed."""
    if step.turns != 2:
        draft.add(Transpose(rows))
        draft.shapes[rows, :2] = draft.shapes[rows, 1::-1]
    for (height, width, _), same in list(draft.by_shape(rows)):
        ys, xs = np.arange(height), np.arange(width)
        ys, xs = (ys if step.turns == 3 else ys[::-1]), (xs if step.turns == 1 else xs[::-1])
        draft.add(Move(same, np.tile(ys, (len(same), 1)), np.tile(xs, (len(same), 1)), 0))


def pad_square(step: PadSquare, draft: Draft, rows: Rows) -> None:
    """A square around each picture."""
    fill = _BORDER_FILLS[step.border] if step.fill is None else step.fill
    for (height, width, _), same in list(draft.by_shape(rows)):
        side = max(height, width)
        if height == width:
            continue
        if side**2 > DEFAULT_LIMITS.max_pixels:
            detail = f"a square of {side}x{side} pixels; the limit is {DEFAULT_LIMITS.max_pixels:,} pixels"
            draft.reject(same, lambda row, text=detail: BadPicture("too_large", text))
            continue
        top, left = (np.full(len(same), -((side - old) // 2)) for old in (height, width))
        _cut(draft, same, top, left, (side, side), fill)
