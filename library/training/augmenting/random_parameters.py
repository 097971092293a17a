"""Random parameters of a batch, bit for bit those that the steps draw for one picture at a time. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from library.steps.arrays import saturated, white
from library.training.augmenting.draft import Draft
from library.training.augmenting.streams import Rows

Floats: TypeAlias = NDArray[np.float64]


def chosen(p: float, draft: Draft, rows: Rows) -> Rows:
    """The pictures that are changed with a probability."""
    return rows[draft.streams.random(rows) < p]


def symmetric(limit: float | tuple[float, float], draft: Draft, rows: Rows) -> Floats:
    """A number for each row, drawn from a range, or from [-limit, limit)."""
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    return draft.streams.uniform(rows, low, high)


def within(limits: Floats, draft: Draft, rows: Rows) -> Floats:
    """A number drawn from [-limit, limit) for each row."""
    return -limits + (limits - -limits) * draft.streams.random(rows)


def factors(amount: float | tuple[float, float], draft: Draft, rows: Rows) -> Floats:
    """A factor for each row, drawn from a range, or from 1 - amount to 1 + amount."""
    low, high = amount if isinstance(amount, tuple) else (max(0.0, 1 - amount), 1 + amount)
    return draft.streams.uniform(rows, low, high)


def mapped(function: Callable[[float], float], values: Floats) -> Floats:
    """A function of Python's math module, whose bits are those of the form for one picture."""
    return np.asarray([function(value) for value in values.tolist()], np.float64)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return size if isinstance(size, tuple) else (size, size)


def level(fill: float | str) -> int:
    """The value of a constant fill; 0 for any other."""
    if isinstance(fill, str):
        return 0
    return int(saturated(np.full((1, 1), fill), np.uint8, white(np.uint8))[0, 0])


def rectangles(
    areas: NDArray[Any], scale: tuple[float, float], ratio: tuple[float, float], draft: Draft, rows: Rows
) -> NDArray[np.int64]:
    """Draws two sides for each row, as `library.steps.augmentations.crops`: n x 2."""
    sizes = areas * draft.streams.uniform(rows, *scale)
    exponents = draft.streams.uniform(rows, math.log(ratio[0]), math.log(ratio[1]))
    # NumPy's exponential has other last bits on some processors.
    shapes = mapped(math.exp, exponents)
    return np.rint(np.stack([np.sqrt(sizes / shapes), np.sqrt(sizes * shapes)], axis=1)).astype(np.int64)
