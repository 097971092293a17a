"""Pictures unlike the others: by the distance of their features to their neighbours, and by single scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Neighbours whose mean distance counts.
NEIGHBOURS = 10
#: A picture is compared with at most so many others, chosen by the seed, so that time grows linearly.
MOST_REFERENCES = 20_000
#: Values farther from the quartiles than this many times their distance are "far out" (Tukey 1977).
FAR_OUT = 3.0
_BLOCK_ROWS = 1024


def neighbour_distances(
    features: NDArray[np.float32], *, neighbours: int = NEIGHBOURS, references: int = MOST_REFERENCES, seed: int = 0
) -> NDArray[np.float64]:
    """Returns the mean cosine distance of each picture to its nearest neighbours, from 0 (all equal) to 2.

    Args:
        features: N x D; standardised before they are compared.
        neighbours: how many count; fewer where there are fewer pictures.
        references: neighbours are searched among so many pictures, or all if there are fewer.
        seed: decides which.
    """
    count = len(features)
    if count < 2:
        return np.zeros(count)
    scale = features.std(0)
    unit = features - features.mean(0)  # the only copy: there may be as many vectors as memory holds twice
    unit /= np.where(scale == 0, 1, scale)
    unit /= np.maximum(np.sqrt(np.einsum("ij,ij->i", unit, unit)), 1e-12)[:, None]
    chosen, others = np.arange(count), unit
    if count > references:
        chosen = np.sort(np.random.default_rng(seed).choice(count, references, replace=False))
        others = unit[chosen]
    nearest = min(neighbours, len(chosen) - 1)
    result = np.zeros(count)
    for first in range(0, count, _BLOCK_ROWS):
        rows = np.arange(first, min(first + _BLOCK_ROWS, count))
        distances = 1 - unit[rows] @ others.T
        distances[rows[:, None] == chosen] = np.inf  # a picture is not its own neighbour
        result[rows] = np.partition(distances, nearest - 1, axis=1)[:, :nearest].mean(1)
    return np.maximum(result, 0)


def far_out(values: NDArray[np.float64], times: float = FAR_OUT) -> NDArray[np.float64]:
    """Returns how far each value lies outside Tukey's outer fences; 0 for a value within them.

    Negative below the lower fence and positive above the upper one, in units of the distance between the quartiles.
    Where more than half of all values are equal, that distance is 0, and every other value is far out: its distance is
    then relative to the common value, or to 1 if that is larger.

    Args:
        values: NaN where there is none.
        times: distance of a fence from its quartile, in units of the distance between the quartiles.
    """
    if not np.isfinite(values).any():
        return np.zeros(len(values))
    lower, upper = np.nanquantile(values, (0.25, 0.75))
    unit = upper - lower
    with np.errstate(invalid="ignore"):
        above, below = values - (upper + times * unit), (lower - times * unit) - values
        size = unit if unit > 0 else max(abs(float(upper)), 1.0)
        # Values that differ from a fence only by rounding are on it.
        outside = np.where(above > 1e-9 * size, above, np.where(below > 1e-9 * size, -below, 0.0))
    return np.nan_to_num(outside / size)
