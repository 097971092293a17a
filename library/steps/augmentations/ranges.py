"""What the augmentations share: ranges to draw from, and what fills the place of pixels that are not there."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import DTypeLike
from pydantic import AfterValidator, BeforeValidator, Field

from library.imaging.picture import Pixels
from library.steps.arrays import by_channel_groups, saturated, white


def in_order(value: Any) -> Any:
    if isinstance(value, tuple) and value[0] > value[1]:
        raise ValueError("should be [low, high], the low end first")
    return value


def _known_fill(value: Any) -> Any:
    if value == "constant":
        return 0.0
    if isinstance(value, str):
        known = value in _BORDERS
    else:
        known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    if not known:
        choices = ", ".join(f'"{name}"' for name in _BORDERS)
        raise ValueError(f"should be a constant from 0 to 1 (a fraction of white), or one of {choices}")
    return value


_BORDERS = {"edge": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT, "wrap": cv2.BORDER_WRAP}

_Turn: TypeAlias = Annotated[float, Field(ge=-360, le=360)]
_Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
_Ratio: TypeAlias = Annotated[float, Field(ge=0.01, le=100)]
_Gain: TypeAlias = Annotated[float, Field(ge=0, le=100)]

#: A probability.
Chance: TypeAlias = Annotated[float, Field(ge=0, le=1)]

#: Degrees: a number d draws evenly between -d and d, a pair between its ends.
Degrees: TypeAlias = Annotated[Annotated[float, Field(ge=0, le=180)] | tuple[_Turn, _Turn], AfterValidator(in_order)]

#: A factor: a number a draws evenly between 1 - a (not under 0) and 1 + a, a pair between its ends.
Factor: TypeAlias = Annotated[Annotated[float, Field(ge=0, le=10)] | tuple[_Gain, _Gain], AfterValidator(in_order)]

#: Two ratios of lengths, the lower first.
Ratios: TypeAlias = Annotated[tuple[_Ratio, _Ratio], AfterValidator(in_order)]

#: Two fractions of an area, the lower first.
Shares: TypeAlias = Annotated[tuple[_Share, _Share], AfterValidator(in_order)]

#: What lies past the rim: a constant (a fraction of white; "constant" means 0), or, as Keras and OpenCV draw them,
#: "edge" `aaaaaa|abcdefgh|hhhhhhh`, "reflect" `fedcba|abcdefgh|hgfedcb`, "wrap" `cdefgh|abcdefgh|abcdefg`.
Fill: TypeAlias = Annotated[float | Literal["edge", "reflect", "wrap"], BeforeValidator(_known_fill)]


def between(low: float, high: float, rng: np.random.Generator) -> float:
    """A number drawn evenly from `low` to `high`."""
    return low + (high - low) * rng.random()


def either_way(most: float | tuple[float, float], rng: np.random.Generator) -> float:
    """A number drawn evenly between -most and most, or between the ends of a pair."""
    low, high = most if isinstance(most, tuple) else (-most, most)
    return between(low, high, rng)


def factor(around: float | tuple[float, float], rng: np.random.Generator) -> float:
    """A factor drawn evenly between 1 - around (not under 0) and 1 + around, or between the ends of a pair."""
    low, high = around if isinstance(around, tuple) else (max(0.0, 1 - around), 1 + around)
    return between(low, high, rng)


def border(fill: float | str, dtype: DTypeLike) -> tuple[int, float]:
    """OpenCV's code of a border, and the value of a constant one."""
    if isinstance(fill, str):
        return _BORDERS[fill], 0.0
    return cv2.BORDER_CONSTANT, float(saturated(np.full((1, 1), fill), dtype, white(dtype))[0, 0])


def padded(pixels: Pixels, rows: int | tuple[int, int], columns: int | tuple[int, int], fill: float | str) -> Pixels:
    """A picture with so many rows more, and columns: on both sides, or before and behind."""
    code, value = border(fill, pixels.dtype)
    top, bottom = rows if isinstance(rows, tuple) else (rows, rows)
    left, right = columns if isinstance(columns, tuple) else (columns, columns)
    return by_channel_groups(
        lambda group: cv2.copyMakeBorder(group, top, bottom, left, right, code, value=(value,) * 4), pixels, 4
    )
