"""Pairs of pictures whose embeddings point in nearly the same direction: the second stage of `striate dedup`.

Every pair is compared, block by block, as a product of float32 matrices: no pair is missed, memory stays that of the
vectors and two blocks, and the time grows with the square of the number of pictures. Hence `MOST_PICTURES`.

Most pairs are ruled out by a few numbers. The vectors are turned so that their first d coordinates hold as much of
their length as possible (principal directions); what the other coordinates add to a product is at most the product of
their lengths (Cauchy and Schwarz). So d coordinates and that length bound the cosine from above, and only pairs whose
bound reaches the threshold are multiplied in full. Where a sample says that this would leave too many, all pairs are.

The last bits of an embedding and of a product depend on the processor and on the libraries that compute them. A pair
whose cosine is the threshold itself may count as similar on one machine and not on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
MOST_PICTURES = 1_000_000
#: By how much the rounding of float32 may change the cosine of two equal vectors.
_ROUNDING = 2e-6
#: Pictures of a block, and numbers that are gathered at a time.
_BLOCK, _GATHERED = 2048, 2**22
#: Numbers of coordinates that may bound the cosine, the vectors from which the best is chosen, and the share of their
#: pairs that the bound may leave.
_HEADS, _SAMPLE, _MOST_LEFT = (8, 16, 32, 64, 128), 2048, 1e-3
#: Fewer vectors are multiplied in full.
FEW = 4096
#: The rounding of float32 in a turned vector: of its squared length, and of a bound.
_LENGTH_ROUNDING, _BOUND_ROUNDING = 4e-6, 1e-5

#: Is called with the share of the pairs that are compared, 0 to 1.
Progress: TypeAlias = Callable[[float], None]


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


def similar_groups(
    vectors: UnitVectors, threshold: float, progress: Progress = lambda share: None
) -> NDArray[np.int64]:
    """Groups pictures by union-find over all pairs whose cosine is at least the threshold.

    Args:
        vectors: from `unit_vectors`.
        threshold: above 0, at most 1.
        progress: is called after each block of pictures.

    Returns:
        N group numbers in order of first occurrence.
    """
    return groups_of_pairs(len(vectors), _similar_pairs(vectors, threshold, progress))


def _similar_pairs(vectors: UnitVectors, threshold: float, progress: Progress) -> Iterator[tuple[Indices, Indices]]:
    bounds = bounding(vectors, threshold)
    compared, least = (vectors, threshold - _ROUNDING) if bounds is None else (bounds, threshold - _BOUND_ROUNDING)
    total = len(vectors)
    for start in range(0, total, _BLOCK):
        block = compared[start : start + _BLOCK]
        for other in range(start, total, _BLOCK):
            products = block @ compared[other : other + _BLOCK].T
            # Rows and columns from one search in a flat array, which is several times as fast as one in two dimensions.
            first, second = np.divmod(np.flatnonzero((products >= least).reshape(-1)), products.shape[1])
            first, second = first + start, second + other
            if bounds is not None:
                # A picture without an embedding has a cosine of NaN, which reaches no threshold.
                reached = cosines(vectors, first, second) >= threshold - _ROUNDING
                first, second = first[reached], second[reached]
            yield first, second
        left = (total - min(start + _BLOCK, total)) / total
        progress(1 - left * left)


def bounding(vectors: UnitVectors, threshold: float) -> NDArray[np.float32] | None:
    """Returns short vectors whose products are never less than the cosines; None where they would rule out too little.

    Each has the first d coordinates of a turned vector and the length of the others.
    """
    total, width = vectors.shape
    if total < FEW:
        return None
    sample = vectors[np.random.default_rng(0).choice(total, min(_SAMPLE, total), replace=False)].astype(np.float64)
    _, directions = np.linalg.eigh(sample.T @ sample)  # orthonormal, those of the least variance first
    turn = np.ascontiguousarray(directions[:, ::-1].astype(np.float32))
    for head in (head for head in _HEADS if 2 * head < width):
        short = _shortened(sample.astype(np.float32), turn[:, :head])
        left = np.count_nonzero(short @ short.T >= threshold - _BOUND_ROUNDING) - len(short)
        if left <= _MOST_LEFT * len(short) ** 2:
            return _shortened(vectors, turn[:, :head])
    return None


def _shortened(vectors: UnitVectors, turn: NDArray[np.float32]) -> NDArray[np.float32]:
    short = np.empty((len(vectors), turn.shape[1] + 1), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        head = block @ turn
        others = np.einsum("ij,ij->i", block, block) - np.einsum("ij,ij->i", head, head)
        short[start : start + _BLOCK, :-1] = head
        short[start : start + _BLOCK, -1] = np.sqrt(np.maximum(others, 0) + _LENGTH_ROUNDING)
    return short


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


def may_be_similar(vectors: UnitVectors, one: Indices, other: Indices, threshold: float) -> NDArray[np.bool_]:
    """Returns for every pair of N and M pictures, N x M, whether its cosine may reach the threshold; misses none.

    One product of matrices is far faster than the cosines of pairs, but it is rounded in another way.
    """
    return vectors[one] @ vectors[other].T >= threshold - 4 * _ROUNDING


def is_similar(cosine: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Returns which cosines reach the threshold: also every one that `similar_groups` counted, summed differently."""
    return cosine >= threshold - 2 * _ROUNDING
