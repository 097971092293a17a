"""The batched form of each step: how its parameters are drawn for many pictures at once. Imports no torch.

Each function here draws, for one type of step, what that step draws when it is called for one picture: in the same
order, bit for bit. A step that has no form here makes its pipeline run on the CPU, picture by picture. A test compares
both for every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture
from library.imaging.codec import DEFAULT_LIMITS
from library.steps.arrays import saturated, white
from library.steps.augmentations.crops import ATTEMPTS, RandomCrop, RandomErase, RandomResizedCrop
from library.steps.augmentations.degradation import GaussianNoise, RandomBlur
from library.steps.augmentations.geometric import MAX_SIDE_PX, Flip, Rotate, Shear, Shift, Zoom
from library.steps.augmentations.photometric import Brightness, ChannelShift, Contrast, Hue, Saturation, require_rgb
from library.steps.augmentations.policies import (
    RANDAUGMENT,
    WIDE,
    Magnitudes,
    Randaugment,
    Sometimes,
    TrivialAugment,
    operation_names,
)
from library.steps.base import Step
from library.steps.geometry import CenterCrop, Crop, Resize
from library.steps.smoothing import GaussianBlur
from library.steps.tone import Invert
from library.training.augmenting.draft import Draft
from library.training.augmenting.operations import (
    Blur,
    ChannelShifts,
    Erase,
    Gain,
    Move,
    Noise,
    Warp,
)
from library.training.augmenting.operations import Resize as ResizeBoxes
from library.training.augmenting.streams import Rows

_Floats = NDArray[np.float64]
_WHITE = int(white(np.uint8))


@dataclass(frozen=True)
class Difference:
    """The most by which a step's batched form differs from its form for one picture, in levels of uint8.

    Attributes:
        most: of any sample.
        mean: over the samples of a picture.
    """

    most: int
    mean: float


@dataclass(frozen=True)
class Form:
    """The batched form of a type of step.

    Attributes:
        draw: adds a step's operations for some pictures to a draft.
        difference: from the form for one picture.
        covers: whether a step with these parameters has the form.
    """

    draw: Callable[[Any, Draft, Rows], None]
    difference: Difference
    covers: Callable[[Any], bool] = lambda step: True


def form_of(step: Step) -> Form | None:
    """The batched form of a step; None where it has none."""
    form = FORMS.get(type(step))
    return form if form is not None and form.covers(step) else None


def steps_without_form(steps: Sequence[Step]) -> list[Step]:
    """The steps that have no batched form; of a `sometimes` those inside it."""
    missing: list[Step] = []
    for step in steps:
        if isinstance(step, Sometimes):
            missing += steps_without_form(step.steps.steps)
        elif form_of(step) is None:
            missing.append(step)
    return missing


def draw_steps(steps: Sequence[Step], draft: Draft, rows: Rows) -> None:
    """Draws steps, which all have batched forms, for some pictures."""
    for step in steps:
        form = form_of(step)
        assert form is not None
        form.draw(step, draft, draft.usable(rows))


# -- combinators and policies -----------------------------------------------------------------------------------------


def _sometimes(step: Sometimes, draft: Draft, rows: Rows) -> None:
    draw_steps(step.steps.steps, draft, _chosen(step.p, draft, rows))


def _randaugment(step: Randaugment, draft: Draft, rows: Rows) -> None:
    for _ in range(step.num_ops):
        usable = draft.usable(rows)
        _draw_from_table(RANDAUGMENT, draft, usable, np.full(len(usable), step.magnitude / 30), step.fill)


def _trivial_augment(step: TrivialAugment, draft: Draft, rows: Rows) -> None:
    _draw_from_table(WIDE, draft, rows, draft.streams.integers(rows, 31) / 30, step.fill)


def _draw_from_table(table: Magnitudes, draft: Draft, rows: Rows, levels: _Floats, fill: float | str) -> None:
    """Draws one operation of a table for each picture."""
    tables = {channels: operation_names(channels) for channels in set(draft.shapes[rows, 2].tolist())}
    counts = np.asarray([len(tables[channels]) for channels in draft.shapes[rows, 2].tolist()], np.int64)
    numbers = draft.streams.integers(rows, counts)
    signs = np.where(draft.streams.random(rows) < 0.5, 1, -1)
    channels = draft.shapes[rows, 2].tolist()
    names = np.asarray([tables[each][number] for each, number in zip(channels, numbers.tolist(), strict=True)])
    for name in dict.fromkeys(names.tolist()):
        drew = names == name
        _draw_operation(name, table, draft, rows[drew], levels[drew], signs[drew], fill)


def _draw_operation(
    name: str,
    table: Magnitudes,
    draft: Draft,
    rows: Rows,
    levels: _Floats,
    signs: NDArray[Any],
    fill: float | str,
) -> None:
    zeros = np.zeros(len(rows))
    match name:
        case "identity":
            pass
        case "shear_x":
            _shear(draft, rows, signs * levels * table.shear, zeros, fill)
        case "shear_y":
            _shear(draft, rows, zeros, signs * levels * table.shear, fill)
        case "shift_x" | "shift_y":
            axis = 1 if name == "shift_x" else 0
            sides = draft.shapes[rows, axis].tolist()
            drawn = zip(sides, levels.tolist(), signs.tolist(), strict=True)
            shifts = np.asarray([table.shift_px(side, level, sign) for side, level, sign in drawn], np.int64)
            none = np.zeros_like(shifts)
            _shift(draft, rows, shifts if axis == 1 else none, none if axis == 1 else shifts, fill)
        case "rotate":
            _rotate(draft, rows, signs * levels * table.degrees, fill)
        case "posterize":
            masks = [_WHITE - (_WHITE >> table.kept_bits(level)) for level in levels.tolist()]
            draft.add(Gain(name, rows, np.asarray(masks, np.float64)))
        case "solarize":
            lowest = np.ceil((1 - levels) * _WHITE)
            some = levels > 0
            draft.add(Gain(name, rows[some], lowest[some]))
        case "stretch" | "equalize":
            draft.add(Gain(name, rows, zeros))
        case _:
            draft.add(Gain(name, rows, 1 + signs * levels * table.gain))


# -- geometry ---------------------------------------------------------------------------------------------------------


def _rotate_step(step: Rotate, draft: Draft, rows: Rows) -> None:
    rows = _chosen(step.p, draft, rows)
    _rotate(draft, rows, _symmetric(step.degrees, draft, rows), step.fill)


def _shear_step(step: Shear, draft: Draft, rows: Rows) -> None:
    rows = _chosen(step.p, draft, rows)
    slopes = [np.zeros(len(rows)), np.zeros(len(rows))]
    for number, axis in enumerate("xy"):
        if step.axis in (axis, "both"):
            slopes[number] = _mapped(lambda d: math.tan(math.radians(d)), _symmetric(step.degrees, draft, rows))
    _shear(draft, rows, slopes[0], slopes[1], step.fill)


def _zoom_step(step: Zoom, draft: Draft, rows: Rows) -> None:
    rows = _chosen(step.p, draft, rows)
    scales, zeros = _factors(step.amount, draft, rows), np.zeros(len(rows))
    _warp(draft, rows, (scales, zeros, zeros, scales), step.fill)


def _rotate(draft: Draft, rows: Rows, degrees: _Floats, fill: float | str) -> None:
    cos = _mapped(lambda d: math.cos(math.radians(d)), degrees)
    sin = _mapped(lambda d: math.sin(math.radians(d)), degrees)
    _warp(draft, rows, (cos, sin, -sin, cos), fill)


def _shear(draft: Draft, rows: Rows, x: _Floats, y: _Floats, fill: float | str) -> None:
    _warp(draft, rows, (np.ones(len(rows)), x, y, 1.0 + x * y), fill)


def _warp(draft: Draft, rows: Rows, matrix: tuple[_Floats, _Floats, _Floats, _Floats], fill: float | str) -> None:
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
    value = fill if isinstance(fill, str) else _level(fill)
    places = np.zeros(len(draft.shapes), np.int64)
    places[rows] = np.arange(len(rows))
    for _, same in draft.by_shape(rows):
        draft.add(Warp(same, inverses[places[same]], value))


def _flip(step: Flip, draft: Draft, rows: Rows) -> None:
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


def _shift_step(step: Shift, draft: Draft, rows: Rows) -> None:
    rows = _chosen(step.p, draft, rows)
    height, width = draft.shapes[rows, 0], draft.shapes[rows, 1]
    # Both are drawn before either is used: first x, then y.
    right = np.rint(_within(step.x * width, draft, rows)).astype(np.int64)
    down = np.rint(_within(step.y * height, draft, rows)).astype(np.int64)
    _shift(draft, rows, right, down, step.fill)


def _shift(draft: Draft, rows: Rows, right: NDArray[Any], down: NDArray[Any], fill: float | str) -> None:
    shifts = np.zeros((len(draft.shapes), 2), np.int64)
    shifts[rows] = np.stack([down, right], axis=1)
    rows = rows[(right != 0) | (down != 0)]
    for (height, width, _), same in draft.by_shape(rows):
        ys, xs = (
            outside(np.arange(side) - shifts[same, axis][:, None], np.asarray([[side]]), fill)
            for axis, side in enumerate((height, width))
        )
        draft.add(Move(same, ys, xs, _level(fill)))


def outside(indices: NDArray[np.int64], sides: NDArray[np.int64], fill: float | str) -> NDArray[np.int64]:
    """Indices of rows or columns as they lie in the picture; -1 for a constant. `sides` broadcasts to `indices`."""
    if fill == "edge":
        return np.clip(indices, 0, sides - 1)
    if fill == "wrap":
        return indices % sides
    if fill == "reflect":
        folded = indices % (2 * sides)
        return np.minimum(folded, 2 * sides - 1 - folded)
    return np.where((indices < 0) | (indices >= sides), -1, indices)


def _random_crop(step: RandomCrop, draft: Draft, rows: Rows) -> None:
    height, width = _pair(step.size)
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
    draft.add(Move(rows, ys, xs, _level(fill)))


def _crop(step: Crop, draft: Draft, rows: Rows) -> None:
    _fixed_cut(draft, rows, np.full((len(rows), 2), (step.top, step.left)), (step.height, step.width), placed=True)


def _center_crop(step: CenterCrop, draft: Draft, rows: Rows) -> None:
    size = _pair(step.size)
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


def _random_resized_crop(step: RandomResizedCrop, draft: Draft, rows: Rows) -> None:
    sides = draft.shapes[rows, :2]
    boxes = np.zeros((len(rows), 4), np.int64)
    left_over = np.arange(len(rows))
    for _ in range(ATTEMPTS):
        drawn = _rectangles(sides[left_over].prod(axis=1), step.scale, step.ratio, draft, rows[left_over])
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
    _resize(draft, rows, boxes, _pair(step.size))


def _resize_step(step: Resize, draft: Draft, rows: Rows) -> None:
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


def _random_erase(step: RandomErase, draft: Draft, rows: Rows) -> None:
    rows = _chosen(step.p, draft, rows)
    sides = draft.shapes[rows, :2]
    drawn = np.zeros((len(rows), 2), np.int64)
    left_over = np.arange(len(rows))
    for _ in range(ATTEMPTS):
        if not len(left_over):
            break
        area = sides[left_over].prod(axis=1)
        # The ratio of this step is height / width, so the two sides come the other way round.
        drawn[left_over] = _rectangles(area, step.scale, step.ratio, draft, rows[left_over])[:, ::-1]
        left_over = left_over[(drawn[left_over] > sides[left_over]).any(axis=1)]
    size = np.minimum(np.maximum(drawn, 1), sides)
    top, left = (draft.streams.integers(rows, sides[:, axis] - size[:, axis] + 1) for axis in (0, 1))
    boxes = np.stack([top, left, size[:, 0], size[:, 1]], axis=1)
    if step.fill == "noise":
        counts = (size.prod(axis=1) * draft.shapes[rows, 2]).tolist()
        noise = draft.streams.arrays(rows, counts, np.uint8)
        values = np.concatenate(noise) if noise else np.zeros(0, np.uint8)
    else:
        values = np.asarray([_level(step.fill)], np.uint8)
    draft.add(Erase(rows, boxes, values))


def _rectangles(
    areas: NDArray[Any], scale: tuple[float, float], ratio: tuple[float, float], draft: Draft, rows: Rows
) -> NDArray[np.int64]:
    """Draws two sides for each row, as `library.steps.augmentations.crops`: n x 2."""
    sizes = areas * draft.streams.uniform(rows, *scale)
    exponents = draft.streams.uniform(rows, math.log(ratio[0]), math.log(ratio[1]))
    # NumPy's exponential has other last bits on some processors.
    shapes = _mapped(math.exp, exponents)
    return np.rint(np.stack([np.sqrt(sizes / shapes), np.sqrt(sizes * shapes)], axis=1)).astype(np.int64)


# -- tone, colour and damage ------------------------------------------------------------------------------------------


def _brightness(step: Brightness, draft: Draft, rows: Rows) -> None:
    draft.add(Gain("brightness", rows, _factors(step.amount, draft, rows)))


def _contrast(step: Contrast, draft: Draft, rows: Rows) -> None:
    draft.add(Gain("contrast", rows, _factors(step.amount, draft, rows)))


def _saturation(step: Saturation, draft: Draft, rows: Rows) -> None:
    rows = _with_rgb(draft, rows, "saturation")
    draft.add(Gain("saturation", rows, _factors(step.amount, draft, rows)))


def _hue(step: Hue, draft: Draft, rows: Rows) -> None:
    rows = _with_rgb(draft, rows, "hue")
    turns = _symmetric(step.amount, draft, rows)
    some = turns != 0
    draft.add(Gain("hue", rows[some], np.rint(turns[some] * 256) % 256))


def _channel_shift(step: ChannelShift, draft: Draft, rows: Rows) -> None:
    most = step.amount * _WHITE
    for (_, _, channels), same in draft.by_shape(rows):
        offsets = np.stack([draft.streams.uniform(same, -most, most) for _ in range(channels)], axis=1)
        draft.add(ChannelShifts(same, np.rint(offsets).astype(np.int32)))


def _gaussian_noise(step: GaussianNoise, draft: Draft, rows: Rows) -> None:
    for shape, same in draft.by_shape(rows):
        levels = draft.streams.arrays(same, [math.prod(shape)] * len(same), np.uint16)
        draft.add(Noise(same, np.stack(levels).reshape(-1, *shape), step.sigma * _WHITE))


def _random_blur(step: RandomBlur, draft: Draft, rows: Rows) -> None:
    draft.add(Blur(rows, draft.streams.uniform(rows, *step.sigma)))


def _gaussian_blur(step: GaussianBlur, draft: Draft, rows: Rows) -> None:
    draft.add(Blur(rows, np.full(len(rows), step.sigma)))


def _invert(step: Invert, draft: Draft, rows: Rows) -> None:
    draft.add(Gain("invert", rows, np.zeros(len(rows))))


def _with_rgb(draft: Draft, rows: Rows, name: str) -> Rows:
    """The pictures with three channels; the others are rejected."""
    for (_, _, channels), same in list(draft.by_shape(rows)):
        try:
            require_rgb(channels, name)
        except BadPicture as bad:
            draft.reject(same, lambda row, bad=bad: bad)
    return draft.usable(rows)


# -- numbers ----------------------------------------------------------------------------------------------------------


def _chosen(p: float, draft: Draft, rows: Rows) -> Rows:
    """The pictures that are changed with a probability."""
    return rows[draft.streams.random(rows) < p]


def _symmetric(limit: float | tuple[float, float], draft: Draft, rows: Rows) -> _Floats:
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    return draft.streams.uniform(rows, low, high)


def _within(limits: _Floats, draft: Draft, rows: Rows) -> _Floats:
    """A number drawn from [-limit, limit) for each row."""
    return -limits + (limits - -limits) * draft.streams.random(rows)


def _factors(amount: float | tuple[float, float], draft: Draft, rows: Rows) -> _Floats:
    low, high = amount if isinstance(amount, tuple) else (max(0.0, 1 - amount), 1 + amount)
    return draft.streams.uniform(rows, low, high)


def _mapped(function: Callable[[float], float], values: _Floats) -> _Floats:
    """A function of Python's math module, whose bits are those of the form for one picture."""
    return np.asarray([function(value) for value in values.tolist()], np.float64)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _level(fill: float | str) -> int:
    """The value of a constant fill; 0 for any other."""
    if isinstance(fill, str):
        return 0
    return int(saturated(np.full((1, 1), fill), np.uint8, white(np.uint8))[0, 0])


_EXACT = Difference(0, 0.0)
_ROUNDING = Difference(1, 0.05)
# Linear interpolation ends in truncated whole numbers in OpenCV.
_RESIZED = Difference(1, 0.5)
# A later operation of a policy may multiply the difference of an earlier one.
_SEVERAL = Difference(4, 0.1)

#: The batched form of each type of step that has one.
FORMS: Mapping[type[Any], Form] = {
    Brightness: Form(_brightness, _ROUNDING),
    CenterCrop: Form(_center_crop, _EXACT),
    ChannelShift: Form(_channel_shift, _EXACT),
    Contrast: Form(_contrast, _ROUNDING),
    Crop: Form(_crop, _EXACT),
    Flip: Form(_flip, _EXACT),
    GaussianBlur: Form(_gaussian_blur, _EXACT, lambda step: step.border == "reflect_101"),
    GaussianNoise: Form(_gaussian_noise, _ROUNDING),
    Hue: Form(_hue, _ROUNDING),
    Invert: Form(_invert, _EXACT),
    Randaugment: Form(_randaugment, _SEVERAL),
    RandomBlur: Form(_random_blur, _EXACT),
    RandomCrop: Form(_random_crop, _EXACT),
    RandomErase: Form(_random_erase, _EXACT),
    RandomResizedCrop: Form(_random_resized_crop, _RESIZED),
    Resize: Form(_resize_step, _RESIZED, lambda step: step.antialias and step.interpolation == "linear"),
    Rotate: Form(_rotate_step, _ROUNDING),
    Saturation: Form(_saturation, _ROUNDING),
    Shear: Form(_shear_step, _ROUNDING),
    Shift: Form(_shift_step, _EXACT),
    Sometimes: Form(_sometimes, _SEVERAL, lambda step: not steps_without_form(step.steps.steps)),
    TrivialAugment: Form(_trivial_augment, _ROUNDING),
    Zoom: Form(_zoom_step, _ROUNDING),
}
