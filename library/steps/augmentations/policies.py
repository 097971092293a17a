"""Augmentations made of others: steps with a probability, and policies that draw operations from a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import cv2
import numpy as np
from pydantic import BeforeValidator, Field

from library.imaging.picture import Pixels
from library.randomness import Probability
from library.steps.arrays import Fill, by_channel_groups, white
from library.steps.augmentations.geometric import rotation, shear, shift
from library.steps.augmentations.photometric import contrasted, saturated_by, scaled
from library.steps.base import Steps, register, traced
from library.steps.moves import Move, Moves, moved, size_of
from library.steps.tone import ContrastStretch, Equalize, Invert

#: An operation of pixels, level (0 to 1), sign (1 or -1) and fill; it returns the result, and how it was moved.
Operation: TypeAlias = Callable[[Pixels, float, int, "float | str"], "tuple[Pixels, Moves]"]


def _are_steps(value: Any) -> Any:
    if not isinstance(value, Steps):
        raise ValueError("should be a filter or an augmentation, or several joined by '|', e.g. gaussian_blur(sigma=1)")
    return value


@register("augmentation")
class Sometimes:
    """Run steps with a probability, all of them or none: `sometimes(0.3, invert | rotate(10))`."""

    p: Annotated[Probability, Field(description="probability that a picture is changed")]
    steps: Annotated[
        Steps, BeforeValidator(_are_steps), Field(description="one filter or augmentation, or several: a | b")
    ]

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return self.traced(pixels, rng)[0]

    def traced(self, pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, Moves]:
        """The result, and how it was moved."""
        moves: Moves = ()
        if rng.random() >= self.p:
            return pixels, moves
        for step in self.steps.steps:
            pixels, its_moves = traced(step, pixels, rng)
            moves += its_moves
        return pixels, moves


@register("augmentation")
class Randaugment:
    """Apply RandAugment: operations drawn from a table of fourteen, all with the same magnitude.

    Cubuk et al. 2020 (RandAugment: Practical automated data augmentation with a reduced search space), with
    torchvision's table: magnitudes from 0 to 30 scale linearly up to shear 0.3, shift 150/331 of a side, rotation by 30
    degrees, factors 1 +- 0.9 of brightness, saturation, contrast and sharpness, 4 bits (posterize) and a threshold of 0
    (solarize); signs are random. Identity, stretch (autocontrast) and equalize have no magnitude. Shears are about the
    centre, not the corner.

    Saturation is only drawn for RGB pictures; all other operations work on any number of channels. Posterize and
    solarize assume that float values are in 0..1.

    Raises:
        BadPicture: `not_finite`, from contrast, stretch and equalize; `too_large` above 32,766 pixels a side.
    """

    num_ops: Annotated[int, Field(ge=1, le=14, description="operations per picture, drawn with repetition")] = 2
    magnitude: Annotated[int, Field(ge=0, le=30, description="strength of the operations, 0 to 30")] = 9
    fill: Annotated[Fill, Field(description="what is outside the picture; 0.5 is the grey of AutoAugment")] = 0.5

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return self.traced(pixels, rng)[0]

    def traced(self, pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, Moves]:
        """The result, and how it was moved."""
        moves: Moves = ()
        for _ in range(self.num_ops):
            pixels, its_moves = _apply_random(RANDAUGMENT_TABLE, pixels, self.magnitude / 30, self.fill, rng)
            moves += its_moves
        return pixels, moves


@register("augmentation")
class TrivialAugment:
    """Apply TrivialAugment: one operation drawn from a table, with a random magnitude; nothing to tune.

    Mueller and Hutter 2021 (TrivialAugment: Tuning-free yet state-of-the-art data augmentation), the "wide" space as in
    torchvision's TrivialAugmentWide: 31 magnitudes up to shear 0.99, shift 32 pixels, rotation by 135 degrees, factors
    1 +- 0.99 of brightness, saturation, contrast and sharpness, 2 bits (posterize), a threshold of 0 (solarize);
    identity, stretch and equalize have no magnitude. Shears are about the centre, not the corner.

    Saturation is only drawn for RGB pictures; all other operations work on any number of channels. Posterize and
    solarize assume that float values are in 0..1.

    Raises:
        BadPicture: `not_finite`, from contrast, stretch and equalize; `too_large` above 32,766 pixels a side.
    """

    fill: Annotated[Fill, Field(description="what is outside the picture; 0.5 is the grey of AutoAugment")] = 0.5

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        return self.traced(pixels, rng)[0]

    def traced(self, pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, Moves]:
        """The result, and how it was moved."""
        return _apply_random(WIDE_TABLE, pixels, int(rng.integers(31)) / 30, self.fill, rng)


def operation_names(channels: int) -> list[str]:
    """The operations that may be drawn for a picture, in the order of the table."""
    return [name for name in WIDE_TABLE if name != "saturation" or channels == 3]


def _apply_random(
    table: Mapping[str, Operation], pixels: Pixels, level: float, fill: float | str, rng: np.random.Generator
) -> tuple[Pixels, Moves]:
    names = operation_names(pixels.shape[2])
    name = names[rng.integers(len(names))]
    return table[name](pixels, level, 1 if rng.random() < 0.5 else -1, fill)


def _traced(pixels: Pixels, move: Move | None) -> tuple[Pixels, Moves]:
    return moved(pixels, move), () if move is None else (move,)


@dataclass(frozen=True)
class Magnitudes:
    """The magnitudes of a table's operations at level 1.

    Attributes:
        shear: pixels that a row slides for each pixel up or down.
        shift: maps a side to a shift, both in pixels.
        degrees: angle of a rotation.
        gain: difference of a factor from 1.
        bits: bits that are kept.
    """

    shear: float
    shift: Callable[[int], float]
    degrees: float
    gain: float
    bits: int

    def table(self) -> dict[str, Operation]:
        """The fourteen operations."""
        return {
            "identity": lambda pixels, level, sign, fill: (pixels, ()),
            "shear_x": lambda pixels, level, sign, fill: _traced(
                pixels, shear(sign * level * self.shear, 0, *size_of(pixels), fill)
            ),
            "shear_y": lambda pixels, level, sign, fill: _traced(
                pixels, shear(0, sign * level * self.shear, *size_of(pixels), fill)
            ),
            "shift_x": lambda pixels, level, sign, fill: _traced(
                pixels, shift(self.shift_px(pixels.shape[1], level, sign), 0, *size_of(pixels), fill)
            ),
            "shift_y": lambda pixels, level, sign, fill: _traced(
                pixels, shift(0, self.shift_px(pixels.shape[0], level, sign), *size_of(pixels), fill)
            ),
            "rotate": lambda pixels, level, sign, fill: _traced(
                pixels, rotation(sign * level * self.degrees, *size_of(pixels), fill)
            ),
            "brightness": lambda pixels, level, sign, fill: (scaled(pixels, 1 + sign * level * self.gain), ()),
            "saturation": lambda pixels, level, sign, fill: (saturated_by(pixels, 1 + sign * level * self.gain), ()),
            "contrast": lambda pixels, level, sign, fill: (contrasted(pixels, 1 + sign * level * self.gain), ()),
            "sharpness": lambda pixels, level, sign, fill: (_sharpened(pixels, 1 + sign * level * self.gain), ()),
            "posterize": lambda pixels, level, sign, fill: (_posterized(pixels, self.kept_bits(level)), ()),
            "solarize": lambda pixels, level, sign, fill: (_solarized(pixels, 1 - level), ()),
            "stretch": lambda pixels, level, sign, fill: (_STRETCH(pixels), ()),
            "equalize": lambda pixels, level, sign, fill: (_EQUALIZE(pixels), ()),
        }

    def shift_px(self, side: int, level: float, sign: int) -> int:
        """The shift along a side, in whole pixels."""
        return sign * int(level * self.shift(side))

    def kept_bits(self, level: float) -> int:
        """The bits that posterize keeps."""
        return 8 - round(level * (8 - self.bits))


RANDAUGMENT = Magnitudes(shear=0.3, shift=lambda side: 150 / 331 * side, degrees=30, gain=0.9, bits=4)
WIDE = Magnitudes(shear=0.99, shift=lambda side: 32, degrees=135, gain=0.99, bits=2)
RANDAUGMENT_TABLE, WIDE_TABLE = RANDAUGMENT.table(), WIDE.table()

_STRETCH, _EQUALIZE, _INVERT = ContrastStretch(low_percentile=0, high_percentile=100), Equalize(), Invert()

#: Pillow's SMOOTH kernel, on which its sharpness is based.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13


def _sharpened(pixels: Pixels, gain: float) -> Pixels:
    """Multiplies the difference of each pixel from its surroundings, mirrored at the borders.

    Pillow leaves the outermost pixels unchanged.
    """
    if gain == 1:
        return pixels
    kernel = SMOOTH * (1 - gain)
    kernel[1, 1] += gain
    return by_channel_groups(lambda group: cv2.filter2D(group, -1, kernel), pixels)


def _posterized(pixels: Pixels, bits: int) -> Pixels:
    """Keeps only the top `bits` bits."""
    if pixels.dtype == np.float32:
        return np.floor(pixels * np.float32(2**bits)) / np.float32(2**bits)
    return pixels & ~pixels.dtype.type(int(white(pixels.dtype)) >> bits)


def _solarized(pixels: Pixels, threshold: float) -> Pixels:
    """Inverts all values at or above a threshold, a fraction of white."""
    if threshold >= 1:
        return pixels
    level = threshold * white(pixels.dtype)
    level = level if pixels.dtype == np.float32 else math.ceil(level)
    return np.where(pixels >= pixels.dtype.type(level), _INVERT(pixels), pixels)
