"""Batched forms of steps that change values: tone, colour, channels, blur, damage. Imports no torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from library.errors import BadPicture
from library.steps.arrays import white
from library.steps.augmentations.crops import ATTEMPTS, RandomErase
from library.steps.augmentations.degradation import GaussianNoise, RandomBlur
from library.steps.augmentations.photometric import Brightness, ChannelShift, Contrast, Hue, Saturation, require_rgb
from library.steps.colour import Channels, Grayscale, Rgb
from library.steps.convolution import Convolve
from library.steps.smoothing import BoxBlur, GaussianBlur, LaplacianSharpen, Sharpen
from library.steps.tone import Binarize, ContrastStretch, Equalize, Gamma, Invert
from library.training.augmenting.draft import Draft
from library.training.augmenting.operations import (
    Bands,
    Blur,
    ChannelShifts,
    Composite,
    Convolution,
    Erase,
    Gain,
    Grey,
    Lookup,
    Mean,
    Noise,
    Stretch,
    Unsharp,
)
from library.training.augmenting.random_parameters import chosen, factors, level, rectangles, symmetric
from library.training.augmenting.streams import Rows

_WHITE = int(white(np.uint8))


def random_erase(step: RandomErase, draft: Draft, rows: Rows) -> None:
    rows = chosen(step.p, draft, rows)
    sides = draft.shapes[rows, :2]
    drawn = np.zeros((len(rows), 2), np.int64)
    left_over = np.arange(len(rows))
    for _ in range(ATTEMPTS):
        if not len(left_over):
            break
        area = sides[left_over].prod(axis=1)
        # The ratio of this step is height / width, so the two sides come the other way round.
        drawn[left_over] = rectangles(area, step.scale, step.ratio, draft, rows[left_over])[:, ::-1]
        left_over = left_over[(drawn[left_over] > sides[left_over]).any(axis=1)]
    size = np.minimum(np.maximum(drawn, 1), sides)
    top, left = (draft.streams.integers(rows, sides[:, axis] - size[:, axis] + 1) for axis in (0, 1))
    boxes = np.stack([top, left, size[:, 0], size[:, 1]], axis=1)
    if step.fill == "noise":
        counts = (size.prod(axis=1) * draft.shapes[rows, 2]).tolist()
        noise = draft.streams.arrays(rows, counts, np.uint8)
        values = np.concatenate(noise) if noise else np.zeros(0, np.uint8)
    else:
        values = np.asarray([level(step.fill)], np.uint8)
    draft.add(Erase(rows, boxes, values))


def brightness(step: Brightness, draft: Draft, rows: Rows) -> None:
    draft.add(Gain("brightness", rows, factors(step.amount, draft, rows)))


def contrast(step: Contrast, draft: Draft, rows: Rows) -> None:
    draft.add(Gain("contrast", rows, factors(step.amount, draft, rows)))


def saturation(step: Saturation, draft: Draft, rows: Rows) -> None:
    rows = _with_rgb(draft, rows, "saturation")
    draft.add(Gain("saturation", rows, factors(step.amount, draft, rows)))


def hue(step: Hue, draft: Draft, rows: Rows) -> None:
    rows = _with_rgb(draft, rows, "hue")
    turns = symmetric(step.amount, draft, rows)
    some = turns != 0
    draft.add(Gain("hue", rows[some], np.rint(turns[some] * 256) % 256))


def channel_shift(step: ChannelShift, draft: Draft, rows: Rows) -> None:
    most = step.amount * _WHITE
    for (_, _, channels), same in draft.by_shape(rows):
        offsets = np.stack([draft.streams.uniform(same, -most, most) for _ in range(channels)], axis=1)
        draft.add(ChannelShifts(same, np.rint(offsets).astype(np.int32)))


def gaussian_noise(step: GaussianNoise, draft: Draft, rows: Rows) -> None:
    for shape, same in draft.by_shape(rows):
        levels = draft.streams.arrays(same, [math.prod(shape)] * len(same), np.uint16)
        draft.add(Noise(same, np.stack(levels).reshape(-1, *shape), step.sigma * _WHITE))


def random_blur(step: RandomBlur, draft: Draft, rows: Rows) -> None:
    draft.add(Blur(rows, draft.streams.uniform(rows, *step.sigma)))


def gaussian_blur(step: GaussianBlur, draft: Draft, rows: Rows) -> None:
    draft.add(Blur(rows, np.full(len(rows), step.sigma)))


def invert(step: Invert, draft: Draft, rows: Rows) -> None:
    draft.add(Gain("invert", rows, np.zeros(len(rows))))


def _with_rgb(draft: Draft, rows: Rows, name: str) -> Rows:
    """The pictures with three channels; the others are rejected."""
    for (_, _, channels), same in list(draft.by_shape(rows)):
        try:
            require_rgb(channels, name)
        except BadPicture as bad:
            draft.reject(same, lambda row, bad=bad: bad)
    return draft.usable(rows)


def gamma(step: Gamma, draft: Draft, rows: Rows) -> None:
    draft.add(Lookup(rows, _table(step)))


def binarize(step: Binarize, draft: Draft, rows: Rows) -> None:
    draft.add(Lookup(rows, _table(step)))


def _table(step: Gamma | Binarize) -> NDArray[np.uint8]:
    """What a step that looks at one sample at a time makes of each value."""
    return step(np.arange(256, dtype=np.uint8).reshape(16, 16, 1)).reshape(-1)


def equalize(step: Equalize, draft: Draft, rows: Rows) -> None:
    draft.add(Gain("equalize", rows, np.zeros(len(rows))))


def contrast_stretch(step: ContrastStretch, draft: Draft, rows: Rows) -> None:
    draft.add(Stretch(rows, (step.low_percentile, step.high_percentile)))


def box_blur(step: BoxBlur, draft: Draft, rows: Rows) -> None:
    draft.add(Mean(rows, step.size, step.border))


def sharpen(step: Sharpen, draft: Draft, rows: Rows) -> None:
    draft.add(Unsharp(rows, step.amount, step.sigma))


def laplacian_sharpen(step: LaplacianSharpen, draft: Draft, rows: Rows) -> None:
    draft.add(Convolution(rows, step.kernel, step.border))


def convolve(step: Convolve, draft: Draft, rows: Rows) -> None:
    draft.add(Convolution(rows, step.weights, step.border or "reflect_101"))


def grayscale(step: Grayscale, draft: Draft, rows: Rows) -> None:
    """One channel, of pictures with any number of them."""
    for (_, _, channels), same in list(draft.by_shape(rows)):
        if channels in (2, 4):
            _composite(draft, same, (step.background,) * (channels - 1))
        if channels > 2:
            draft.add(Grey(same))
        draft.shapes[same, 2] = 1


def rgb(step: Rgb, draft: Draft, rows: Rows) -> None:
    """Three channels, of pictures with up to four."""
    for (_, _, channels), same in list(draft.by_shape(_accepted(step, draft, rows))):
        if channels < 3:
            draft.add(Bands(same, (0, 0, 0, 1)[: 2 + channels]))
        if channels in (2, 4):
            _composite(draft, same, step.background)
        draft.shapes[same, 2] = 3


def channels(step: Channels, draft: Draft, rows: Rows) -> None:
    rows = _accepted(step, draft, rows)
    draft.add(Bands(rows, step.bands))
    draft.shapes[rows, 2] = len(step.bands)


def _composite(draft: Draft, rows: Rows, background: tuple[float, ...]) -> None:
    draft.add(Composite(rows, np.asarray(background, np.float32) * np.float32(white(np.uint8))))


def _accepted(step: Rgb | Channels, draft: Draft, rows: Rows) -> Rows:
    """The pictures with channels that a step takes, as it says of a single pixel; the others are rejected."""
    for (_, _, count), same in list(draft.by_shape(rows)):
        try:
            step(np.zeros((1, 1, count), np.uint8))
        except BadPicture as bad:
            draft.reject(same, lambda row, bad=bad: bad)
    return draft.usable(rows)
