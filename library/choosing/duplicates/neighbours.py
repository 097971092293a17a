"""Finds pairs of 64-bit hashes that differ in few bits, without comparing every hash with every other.

The bits are dealt into b blocks. Two hashes that differ in at most r bits are equal in at least b - r of the blocks, so
each of the C(b, r) choices of b - r blocks is a table: hashes sorted by those blocks, and only equal ones are compared
(Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007). More blocks make longer keys, thus
fewer comparisons, but more tables. How many are best follows from the number of hashes and from how often a sample of
them collides; so the cost stays far from the square of their number. Bits that are nearly constant, as in drawings,
are spread over the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, islice
from math import comb
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]
Indices: TypeAlias = NDArray[np.int64]
#: Tells of pairs of indices, in two arrays that are broadcast, which are near.
Near: TypeAlias = Callable[[Indices, Indices], NDArray[np.bool_]]

HASH_BITS = 64
#: Seconds to sort one hash and to compare one pair: only their ratio matters.
_SORT_S, _COMPARE_S = 1e-7, 6e-9
_SAMPLE = 2**16
_MOST_TABLES = 5000
#: Sorted hashes that are compared at a time, so that the arrays of a step stay in the processor's cache.
_CHUNK = 2**17


def distances(first: Hashes, second: Hashes) -> NDArray[np.uint8]:
    """Returns the number of bits in which hashes differ, 0 to 64; the shapes are broadcast."""
    return np.bitwise_count(first ^ second)


def table_masks(hashes: Hashes, radius: int) -> list[np.uint64]:
    """Returns masks of bits such that any two hashes within `radius` are equal under at least one mask.

    Args:
        hashes: the hashes to compare; a sample of them says which masks are cheapest.
        radius: the largest number of different bits, 0 to 64.
    """
    sample = hashes[:: max(1, len(hashes) // _SAMPLE)]
    by_balance = _most_balanced_bits(sample)
    best, best_cost = [np.uint64(0)], _COMPARE_S * len(hashes) ** 2 / 2
    for blocks in range(radius + 1, min(radius + 9, HASH_BITS + 1)):
        tables = comb(blocks, radius)
        if tables > _MOST_TABLES or tables * _SORT_S * len(hashes) > best_cost:
            break
        parts = _deal(by_balance, blocks)
        tried = islice(combinations(parts, blocks - radius), 0, tables, max(1, tables // 4))
        pairs = max(_colliding_pairs(sample, _joined(chosen), len(hashes)) for chosen in tried)
        cost = tables * (_SORT_S * len(hashes) + _COMPARE_S * pairs)
        if cost < best_cost:
            best, best_cost = [_joined(chosen) for chosen in combinations(parts, blocks - radius)], cost
    return best


def bucket_order(hashes: Hashes, mask: np.uint64) -> tuple[Indices, Indices]:
    """Sorts hashes by the bits of a mask.

    Returns:
        order: indices of the hashes, equal ones (under the mask) side by side.
        ends: for each position in that order, the position after its last equal.
    """
    keys = hashes & mask
    order = np.argsort(keys)
    keys = keys[order]
    last = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)) + 1
    return order, np.repeat(last, np.diff(last, prepend=0))


def pairs_in_buckets(
    order: Indices, ends: Indices, near: Near, *, nearest: int, farthest: int | None = None
) -> Iterator[tuple[Indices, Indices]]:
    """Yields the near pairs of each bucket that lie at least `nearest` and at most `farthest` places apart.

    Args:
        order: from `bucket_order`.
        ends: from `bucket_order`; lower values leave pairs out.
        near: tells which pairs are near.
        nearest: the fewest places between the two of a pair; at least 1.
        farthest: the most places; None for the whole bucket.

    Yields:
        Two arrays of indices: pair number i is the i-th of each.
    """
    for start in range(0, len(order), _CHUNK):
        places = np.arange(start, min(start + _CHUNK, len(order)))
        places = places[ends[places] > places + nearest]
        apart = nearest
        while len(places) and (farthest is None or apart <= farthest):
            first, second = order[places], order[places + apart]
            is_near = near(first, second)
            if is_near.any():
                yield first[is_near], second[is_near]
            apart += 1
            places = places[ends[places] > places + apart]


def _most_balanced_bits(sample: Hashes) -> list[int]:
    """Returns the bits 0 to 63, those that are most evenly set and not set first: they tell hashes apart best."""
    set_bits = [int(np.count_nonzero(sample & np.uint64(1 << bit))) for bit in range(HASH_BITS)]
    return sorted(range(HASH_BITS), key=lambda bit: (abs(2 * set_bits[bit] - len(sample)), bit))


def _deal(bits: list[int], blocks: int) -> list[np.uint64]:
    """Deals bits to blocks like cards, forwards and backwards in turn, so that each gets as many good ones."""
    parts = [0] * blocks
    for number, bit in enumerate(bits):
        turn, place = divmod(number, blocks)
        parts[place if turn % 2 == 0 else blocks - 1 - place] |= 1 << bit
    return [np.uint64(part) for part in parts]


def _joined(parts: tuple[np.uint64, ...]) -> np.uint64:
    return np.bitwise_or.reduce(np.array(parts, np.uint64))


def _colliding_pairs(sample: Hashes, mask: np.uint64, number: int) -> float:
    """Estimates how many pairs of `number` hashes are equal under a mask, from a sample."""
    _, counts = np.unique(sample & mask, return_counts=True)
    counts = counts.astype(float)
    seen = float((counts * (counts - 1)).sum()) / 2
    if not seen:
        return number**2 / 2 / 2.0 ** int(mask).bit_count()
    return seen * (number / len(sample)) ** 2
