from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from library.choosing.duplicates.neighbours import Indices, bucket_order, distances, pairs_in_buckets, table_masks

HASHES = np.random.default_rng(0).integers(0, 2**64, 30_000, dtype=np.uint64)


@pytest.mark.parametrize("radius", [1, 3, 4, 6])
def test_any_two_hashes_within_the_radius_are_equal_under_a_mask(radius: int) -> None:
    masks = table_masks(HASHES, radius)
    assert len(masks) > 1
    rng = np.random.default_rng(radius)
    for one in HASHES[:300]:
        flipped = np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, radius, replace=False).astype(np.uint64))
        assert any(one & mask == (one ^ flipped) & mask for mask in masks)


def test_more_hashes_are_compared_under_longer_keys() -> None:
    bits = [int(table_masks(HASHES[:number], 4)[0]).bit_count() for number in (100, 3000, 30_000)]
    assert bits[0] == 0  # few are compared with each other
    assert bits == sorted(bits)


def test_bits_that_never_change_do_not_shorten_the_keys() -> None:
    half = HASHES & np.uint64(0x5555555555555555)
    for mask in islice(table_masks(half, 2), 8):
        keys = np.unique(half & mask)
        assert len(keys) > 200


def test_pairs_in_buckets_are_each_yielded_once_and_in_reach() -> None:
    hashes = HASHES[:500]
    order, ends = bucket_order(hashes, np.uint64(0b111))

    def near(one: Indices, other: Indices) -> NDArray[np.bool_]:
        return distances(hashes[one], hashes[other]) <= 26

    parts = [pairs_in_buckets(order, ends, near, nearest=1, farthest=4)]
    parts.append(pairs_in_buckets(order, ends, near, nearest=5))
    found = [tuple(sorted(pair)) for part in parts for one, other in part for pair in zip(one, other, strict=True)]
    same = (hashes[:, None] & np.uint64(0b111)) == (hashes[None] & np.uint64(0b111))
    expected = np.argwhere(np.triu(same & (distances(hashes[:, None], hashes[None]) <= 26), 1))
    assert sorted(found) == sorted(map(tuple, expected))
