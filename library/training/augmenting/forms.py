"""The batched form of each step: how its parameters are drawn for many pictures at once. Imports no torch.

A form draws what its step draws when it is called for one picture: in the same order, bit for bit. A step that has no
form here makes its pipeline run on the CPU, picture by picture. A test compares both for every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.steps.arrays import white
from library.steps.augmentations.crops import RandomCrop, RandomErase, RandomResizedCrop
from library.steps.augmentations.degradation import GaussianNoise, RandomBlur
from library.steps.augmentations.geometric import Flip, Rotate, Shear, Shift, Zoom
from library.steps.augmentations.photometric import Brightness, ChannelShift, Contrast, Hue, Saturation
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
from library.steps.colour import Channels, Grayscale, Rgb
from library.steps.convolution import Convolve
from library.steps.geometry import CenterCrop, Crop, PadSquare, Resize, Rotate90
from library.steps.smoothing import BoxBlur, GaussianBlur, LaplacianSharpen, Sharpen
from library.steps.tone import Binarize, ContrastStretch, Equalize, Gamma, Invert
from library.training.augmenting import appearance, placement
from library.training.augmenting.draft import Draft
from library.training.augmenting.operations import Gain
from library.training.augmenting.random_parameters import Floats, chosen
from library.training.augmenting.streams import Rows

_WHITE = int(white(np.uint8))
_MAX_WEIGHTS = 49


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
    draw_steps(step.steps.steps, draft, chosen(step.p, draft, rows))


def _randaugment(step: Randaugment, draft: Draft, rows: Rows) -> None:
    for _ in range(step.num_ops):
        usable = draft.usable(rows)
        _draw_from_table(RANDAUGMENT, draft, usable, np.full(len(usable), step.magnitude / 30), step.fill)


def _trivial_augment(step: TrivialAugment, draft: Draft, rows: Rows) -> None:
    _draw_from_table(WIDE, draft, rows, draft.streams.integers(rows, 31) / 30, step.fill)


def _draw_from_table(table: Magnitudes, draft: Draft, rows: Rows, levels: Floats, fill: float | str) -> None:
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
    levels: Floats,
    signs: NDArray[Any],
    fill: float | str,
) -> None:
    zeros = np.zeros(len(rows))
    match name:
        case "identity":
            pass
        case "shear_x":
            placement.shear(draft, rows, signs * levels * table.shear, zeros, fill)
        case "shear_y":
            placement.shear(draft, rows, zeros, signs * levels * table.shear, fill)
        case "shift_x" | "shift_y":
            axis = 1 if name == "shift_x" else 0
            sides = draft.shapes[rows, axis].tolist()
            drawn = zip(sides, levels.tolist(), signs.tolist(), strict=True)
            shifts = np.asarray([table.shift_px(side, level, sign) for side, level, sign in drawn], np.int64)
            none = np.zeros_like(shifts)
            placement.shift(draft, rows, shifts if axis == 1 else none, none if axis == 1 else shifts, fill)
        case "rotate":
            placement.rotate(draft, rows, signs * levels * table.degrees, fill)
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


_EXACT = Difference(0, 0.0)
_ROUNDING = Difference(1, 0.05)
# Linear interpolation ends in truncated whole numbers in OpenCV.
_RESIZED = Difference(1, 0.5)
# A later operation of a policy may multiply the difference of an earlier one.
_SEVERAL = Difference(4, 0.1)


def _keeps_size(step: Convolve) -> bool:
    if step.channels is not None or step.offset:
        return False
    # OpenCV sums larger kernels through a Fourier transform.
    return step.padding == "same" and step.stride == 1 and step.weights.size <= _MAX_WEIGHTS


#: The batched form of each type of step that has one.
FORMS: Mapping[type[Any], Form] = {
    Binarize: Form(appearance.binarize, _EXACT, lambda step: step.method == "fixed"),
    BoxBlur: Form(appearance.box_blur, _ROUNDING),
    Brightness: Form(appearance.brightness, _ROUNDING),
    CenterCrop: Form(placement.center_crop, _EXACT),
    ChannelShift: Form(appearance.channel_shift, _EXACT),
    Channels: Form(appearance.channels, _EXACT),
    Contrast: Form(appearance.contrast, _ROUNDING),
    ContrastStretch: Form(appearance.contrast_stretch, _EXACT),
    Convolve: Form(appearance.convolve, _ROUNDING, _keeps_size),
    Crop: Form(placement.crop, _EXACT),
    Equalize: Form(appearance.equalize, _EXACT),
    Flip: Form(placement.flip, _EXACT),
    Gamma: Form(appearance.gamma, _EXACT),
    GaussianBlur: Form(appearance.gaussian_blur, _EXACT, lambda step: step.border == "reflect_101"),
    GaussianNoise: Form(appearance.gaussian_noise, _ROUNDING),
    Grayscale: Form(appearance.grayscale, _ROUNDING),
    Hue: Form(appearance.hue, _ROUNDING),
    Invert: Form(appearance.invert, _EXACT),
    LaplacianSharpen: Form(appearance.laplacian_sharpen, _ROUNDING),
    PadSquare: Form(placement.pad_square, _EXACT),
    Randaugment: Form(_randaugment, _SEVERAL),
    RandomBlur: Form(appearance.random_blur, _EXACT),
    RandomCrop: Form(placement.random_crop, _EXACT),
    RandomErase: Form(appearance.random_erase, _EXACT),
    RandomResizedCrop: Form(placement.random_resized_crop, _RESIZED),
    Resize: Form(placement.resize_step, _RESIZED, lambda step: step.antialias and step.interpolation == "linear"),
    Rgb: Form(appearance.rgb, _ROUNDING),
    Rotate: Form(placement.rotate_step, _ROUNDING),
    Rotate90: Form(placement.rotate90, _EXACT),
    Saturation: Form(appearance.saturation, _ROUNDING),
    Sharpen: Form(appearance.sharpen, _ROUNDING, lambda step: step.border == "reflect_101"),
    Shear: Form(placement.shear_step, _ROUNDING),
    Shift: Form(placement.shift_step, _EXACT),
    Sometimes: Form(_sometimes, _SEVERAL, lambda step: not steps_without_form(step.steps.steps)),
    TrivialAugment: Form(_trivial_augment, _ROUNDING),
    Zoom: Form(placement.zoom_step, _ROUNDING),
}
