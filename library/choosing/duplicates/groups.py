"""Groups of pictures that belong together: equal digests, hashes within a radius, and unions of such groupings.

A grouping is an array with a group number for each picture: 0 for the group of the first picture, and so on in the
order in which groups first occur, so equal groupings are equal arrays. Groups are transitive: where A is near B and B
is near C, all three are one group, even if A and C are not near each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from library.choosing.duplicates.neighbours import (
    HASH_BITS,
    Hashes,
    Indices,
    Near,
    bucket_order,
    distances,
    pairs_in_buckets,
    table_masks,
)

#: Places in a bucket that are compared before it is asked whether all of the bucket is one group already.
_FIRST_PLACES = 8
#: Buckets above this size are compared in blocks, without their largest group.
_LARGE_BUCKET = 1024
#: Comparisons of a block.
_BLOCK = 2**22
#: Pairs that are collected before groups are joined.
_MOST_PAIRS = 2**22


def near_groups(
    hashes: Hashes, radius: int, second_hashes: Hashes | None = None, second_radius: int = 0
) -> NDArray[np.int64]:
    """Groups hashes by union-find over all pairs that differ in at most `radius` bits.

    Args:
        hashes: N 64-bit hashes, uint64.
        radius: the largest number of different bits, 0 to 64; the cost rises steeply above 10.
        second_hashes: N other hashes of the same pictures; a pair is near only if these are near, too.
        second_radius: the largest number of different bits of the second hashes.

    Returns:
        N group numbers, int64, in order of first occurrence.

    Raises:
        ValueError: for a radius below 0 or above 64.
    """
    for value in (radius, second_radius):
        if not 0 <= value <= HASH_BITS:
            raise ValueError(f"radius {value}: must be 0 to {HASH_BITS} bits")
    first = np.asarray(hashes, np.uint64)
    second = np.zeros_like(first) if second_hashes is None else np.asarray(second_hashes, np.uint64)
    # Thousands of flat pictures share their hashes: they are one point from here on.
    chosen, inverse = _distinct(first, second)
    first, second = first[chosen], second[chosen]

    def near(one: Indices, other: Indices) -> NDArray[np.bool_]:
        is_near = distances(first[one], first[other]) <= radius
        if second_hashes is not None:
            is_near &= distances(second[one], second[other]) <= second_radius
        return is_near

    groups = _Groups(len(first))
    if len(first) > 1 and (radius or second_hashes is not None):
        for mask in table_masks(first, radius):
            _join_table(*bucket_order(first, mask), near, groups)
    return in_order_of_occurrence(groups.numbers[inverse])


def _distinct(first: Hashes, second: Hashes) -> tuple[Indices, Indices]:
    """Returns one index for each distinct pair of hashes, and for each index its place among those."""
    order = np.lexsort((second, first))
    one, other = first[order], second[order]
    new = np.append(True, (one[1:] != one[:-1]) | (other[1:] != other[:-1])) if len(order) else np.empty(0, np.bool_)
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.cumsum(new) - 1
    return order[new], inverse


def joined_groups(groupings: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Joins groupings of the same N pictures: two pictures that any of them puts into one group are in one group.

    Args:
        groupings: at least one; the numbers of one need not have to do with those of another.
    """
    groups = _Groups(len(groupings[0]))
    for grouping in groupings:
        _, first, inverse = np.unique(grouping, return_index=True, return_inverse=True)
        groups.join(np.arange(len(grouping)), first[inverse])
    return in_order_of_occurrence(groups.numbers)


def groups_of_pairs(points: int, pairs: Iterable[tuple[Indices, Indices]]) -> NDArray[np.int64]:
    """Groups points by union-find over pairs.

    Args:
        points: their number.
        pairs: two arrays of indices at a time; pair number i is the i-th of each.
    """
    groups = _Groups(points)
    _join_all(groups, pairs)
    return in_order_of_occurrence(groups.numbers)


def in_order_of_occurrence(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumbers groups 0, 1, 2, ... in the order in which they first occur."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


class _Groups:
    """Union-find over points, many pairs at a time.

    Attributes:
        numbers: the group number of each point.
    """

    def __init__(self, points: int) -> None:
        self.numbers: NDArray[np.int64] = np.arange(points)

    def join(self, first: Indices, second: Indices) -> None:
        """Joins the groups of the i-th points of two arrays, for every i."""
        left, right = self.numbers[first], self.numbers[second]
        apart = left != right
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        concerned, compact = np.unique(np.concatenate([left, right]), return_inverse=True)
        left, right = compact[: len(left)], compact[len(left) :]
        size = len(concerned)
        graph = coo_matrix((np.ones(len(left), np.bool_), (left, right)), (size, size))
        _, component = connected_components(graph, directed=False)
        new = np.arange(len(self.numbers))
        new[concerned] = concerned[np.unique(component, return_index=True)[1][component]]
        self.numbers = new[self.numbers]


def _join_table(order: Indices, ends: Indices, near: Near, groups: _Groups) -> None:
    """Joins all near pairs that lie in one bucket of a table.

    Neighbours in sorted order come first: they join most of what belongs together, and a bucket that is one group needs
    no more comparisons.
    """
    for last in (_FIRST_PLACES, None):
        ends = _without_finished(order, ends, groups.numbers)
        if last is None:
            _join_all(groups, _pairs_in_large(order, ends, near, groups.numbers))
            ends = _without_large(ends)
        nearest = 1 if last else _FIRST_PLACES + 1
        _join_all(groups, pairs_in_buckets(order, ends, near, nearest=nearest, farthest=last))


def _join_all(groups: _Groups, pairs: Iterable[tuple[Indices, Indices]]) -> None:
    """Joins pairs, some millions at a time: a join costs as much as it has points, however few pairs there are."""
    first: list[Indices] = []
    second: list[Indices] = []
    for one, other in pairs:
        first.append(one)
        second.append(other)
        if sum(map(len, first)) >= _MOST_PAIRS:
            groups.join(np.concatenate(first), np.concatenate(second))
            first, second = [], []
    if first:
        groups.join(np.concatenate(first), np.concatenate(second))


def _without_finished(order: Indices, ends: Indices, numbers: NDArray[np.int64]) -> Indices:
    """Returns `ends` with 0 in the buckets whose points are all of one group."""
    here = numbers[order]
    starts = np.flatnonzero(np.append(True, ends[1:] != ends[:-1])) if len(ends) else np.empty(0, np.int64)
    one_group = np.minimum.reduceat(here, starts) == np.maximum.reduceat(here, starts)
    return np.where(np.repeat(one_group, np.diff(np.append(starts, len(ends)))), 0, ends)


def _pairs_in_large(
    order: Indices, ends: Indices, near: Near, numbers: NDArray[np.int64]
) -> Iterator[tuple[Indices, Indices]]:
    """Yields the near pairs of large buckets; not those of two points of a bucket's largest group."""
    sizes = np.bincount(ends, minlength=1)
    for end in np.flatnonzero(sizes > _LARGE_BUCKET):
        if end:
            members = order[end - sizes[end] : end]
            values, counts = np.unique(numbers[members], return_counts=True)
            others = members[numbers[members] != values[np.argmax(counts)]]
            step = max(1, _BLOCK // len(members))
            for start in range(0, len(others), step):
                block = others[start : start + step]
                first, second = np.nonzero(near(block[:, None], members[None]))
                yield block[first], members[second]


def _without_large(ends: Indices) -> Indices:
    """Returns `ends` with 0 in large buckets."""
    return np.where(np.bincount(ends, minlength=1)[ends] > _LARGE_BUCKET, 0, ends)
