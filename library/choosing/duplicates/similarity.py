"""Pairs of pictures whose embeddings point in nearly the same direction: the second stage of `striate dedup`.

Every pair is compared, block by block, as a product of float32 matrices: no pair is missed, memory stays that of the
vectors and two blocks, and the time grows with the square of the number of pictures. Hence `MOST_PICTURES`.

The last bits of an embedding and of a product depend on the processor and on the libraries that compute them. A pair
whose cosine is the threshold itself may count as similar on one machine and not on another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from library.choosing.duplicates.groups import groups_of_pairs
from library.choosing.duplicates.neighbours import Indices
from library.errors import UsageError

_compute: Any = pyarrow.compute  # its functions are created at import, where no type checker sees them

#: N x D of length 1, or 0 where a picture has no embedding.
UnitVectors: TypeAlias = NDArray[np.float32]

#: Pictures of which every pair is compared; twice as many take four times as long.
MOST_PICTURES = 100_000
#: By how much the rounding of float32 may change the cosine of two equal vectors.
_ROUNDING = 2e-6
#: Pictures of a block, and numbers that are gathered at a time.
_BLOCK, _GATHERED = 2048, 2**22


def check_pictures(pictures: int) -> None:
    """Raises UsageError if there are too many pictures to compare every pair."""
    if pictures > MOST_PICTURES:
        raise UsageError(
            f"--cosine compares every pair of at most {MOST_PICTURES:,} pictures, and there are {pictures:,}; leave it "
            "out, or use it on parts of the dataset"
        )


def unit_vectors(columns: Iterable[Any], pictures: int) -> UnitVectors:
    """Takes embeddings from the parts of a side table.

    Args:
        columns: of fixed-size lists, null where a picture has no embedding; together one for each picture.
        pictures: their number.

    Raises:
        UsageError: they are not all equally long, thus not of one model.
    """
    vectors = np.zeros((pictures, 0), np.float32)
    first = 0
    for column in columns:
        width = column.type.list_size
        if not vectors.shape[1]:
            vectors = np.zeros((pictures, width), np.float32)
        if width != vectors.shape[1]:
            raise UsageError(f"embeddings of {vectors.shape[1]} and of {width} numbers are not of the same model")
        rows = first + np.flatnonzero(np.asarray(_compute.is_valid(column)))
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        values = np.asarray(whole.flatten(), np.float32).reshape(-1, width)  # flatten leaves out what is null
        # Scaled by the largest number first, as the square of a large one is infinite.
        values = values / np.maximum(np.abs(values).max(1, initial=0, keepdims=True), np.finfo(np.float32).tiny)
        vectors[rows] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        first += len(column)
    return vectors


def similar_groups(vectors: UnitVectors, threshold: float) -> NDArray[np.int64]:
    """Groups pictures by union-find over all pairs whose cosine is at least the threshold.

    Args:
        vectors: from `unit_vectors`.
        threshold: above 0, at most 1.

    Returns:
        N group numbers in order of first occurrence.
    """
    return groups_of_pairs(len(vectors), _similar_pairs(vectors, threshold))


def _similar_pairs(vectors: UnitVectors, threshold: float) -> Iterator[tuple[Indices, Indices]]:
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        for other in range(start, len(vectors), _BLOCK):
            first, second = np.nonzero(block @ vectors[other : other + _BLOCK].T >= threshold - _ROUNDING)
            yield first + start, second + other


def cosines(vectors: UnitVectors, one: Indices, other: Indices) -> NDArray[np.float32]:
    """Returns the cosines of pairs, whose indices are broadcast; NaN where one of the two has no embedding."""
    pair = np.broadcast_arrays(one, other)
    first, second = pair[0].reshape(-1), pair[1].reshape(-1)
    result = np.empty(len(first), np.float32)
    step = max(1, _GATHERED // max(1, vectors.shape[1]))
    for start in range(0, len(first), step):
        left, right = (vectors[part[start : start + step]] for part in (first, second))
        present = left.any(1) & right.any(1)
        result[start : start + step] = np.where(present, np.einsum("ij,ij->i", left, right), np.nan)
    return result.reshape(pair[0].shape)


def is_similar(cosine: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Returns which cosines reach the threshold: also every one that `similar_groups` counted, summed differently."""
    return cosine >= threshold - 2 * _ROUNDING
