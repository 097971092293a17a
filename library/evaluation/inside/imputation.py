"""Removes pixels by filling in what their neighbours predict, so that the shape of what is gone cannot be seen.

Noisy linear imputation of Rong, Leemann, Borisov, Kasneci and Kasneci 2022 (ROAD, https://arxiv.org/abs/2202.00449):
each removed pixel is the weighted mean of its eight neighbours, which may be removed too, so all of them together are
the solution of a sparse linear system; a little noise is added. A network that is asked about pixels of one colour may
answer to their outline; here there is none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from library.imaging.picture import Pixels

#: Weights of the eight neighbours, by row and column: those at a side count twice those at a corner.
_NEIGHBOURS = {
    (row, column): 1 / 6 if 0 in (row, column) else 1 / 12
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if (row, column) != (0, 0)
}
#: Deviation of the noise as a fraction of the range of values. The authors add 0.01 to inputs that are divided by their
#: deviation, which is about a quarter of this.
NOISE = 0.01


def imputed(pixels: Pixels, removed: NDArray[np.bool_], noise: float = NOISE) -> Pixels:
    """Returns a picture whose removed pixels are filled in from those that stay.

    The noise is the same in each call for pictures of one size, so that pictures with other pixels removed can be
    compared.

    Args:
        pixels: height x width x channels; integers of any range, or floats from 0 to 1.
        removed: height x width; at least one pixel must stay.
        noise: deviation of the noise as a fraction of the range of values; 0 for none.

    Raises:
        ValueError: no pixel stays.
    """
    if removed.all():
        raise ValueError("at least one pixel must stay")
    if not removed.any():  # an empty system has no solution
        return pixels.copy()
    count = int(removed.sum())
    rows, columns = np.nonzero(removed)
    numbers = np.full(removed.shape, -1)
    numbers[removed] = np.arange(count)
    known = np.zeros((count, pixels.shape[2]))
    weights = np.zeros(count)
    entries: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for (down, right), weight in _NEIGHBOURS.items():
        beside, across = rows + down, columns + right
        inside = (beside >= 0) & (beside < removed.shape[0]) & (across >= 0) & (across < removed.shape[1])
        weights += weight * inside
        places = np.flatnonzero(inside)
        others = beside[places], across[places]
        gone = removed[others]
        entries.append((places[gone], numbers[others][gone], np.full(int(gone.sum()), -weight)))
        stay = places[~gone]
        known[stay] += weight * pixels[beside[stay], across[stay]].astype(np.float64)
    entries.append((np.arange(count), np.arange(count), weights))
    across_all, along_all, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = sparse.csc_matrix((values, (across_all, along_all)), shape=(count, count))
    # The matrix is symmetric and its diagonal is the largest, so no rows are exchanged; half the time for 224 pixels.
    solved = splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(known)
    scale = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "iu" else 1.0
    if noise:
        solved += np.random.default_rng(0).normal(0, noise * scale, pixels.shape)[removed]
    result = pixels.copy()
    result[removed] = np.clip(np.rint(solved), 0, scale) if pixels.dtype.kind in "iu" else solved
    return result
