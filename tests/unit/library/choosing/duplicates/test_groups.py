import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from library.choosing.duplicates import groups
from library.choosing.duplicates.groups import in_order_of_occurrence, joined_groups, near_groups
from library.choosing.duplicates.neighbours import Hashes


def by_comparing_all(hashes: Hashes, radius: int) -> np.ndarray:
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= radius
    return in_order_of_occurrence(connected_components(near, directed=False)[1])


def scattered(seed: int, number: int, flips: int, centres: int, balanced: bool) -> Hashes:
    """Hashes around some centres; unbalanced ones have most of their bits unset, as drawings have."""
    rng = np.random.default_rng(seed)
    middles = rng.integers(0, 2**64, centres, dtype=np.uint64)
    if not balanced:
        middles &= rng.integers(0, 2**64, centres, dtype=np.uint64) & rng.integers(0, 2**64, centres, dtype=np.uint64)
    hashes = middles[rng.integers(0, centres, number)]
    for _ in range(flips):
        hashes ^= np.uint64(1) << rng.integers(0, 64, number, dtype=np.uint64)
    return hashes


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(1, 400),
    st.integers(0, 9),
    st.integers(1, 90),
    st.booleans(),
    st.integers(0, 12),
)
def test_groups_equal_those_of_comparing_every_pair(
    seed: int, number: int, flips: int, centres: int, balanced: bool, radius: int
) -> None:
    hashes = scattered(seed, number, flips, centres, balanced)
    assert np.array_equal(near_groups(hashes, radius), by_comparing_all(hashes, radius))


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("radius", [1, 4, 7])
def test_large_sets_are_grouped_through_tables_without_loss(
    monkeypatch: pytest.MonkeyPatch, radius: int, balanced: bool
) -> None:
    monkeypatch.setattr(groups, "_LARGE_BUCKET", 50)
    monkeypatch.setattr(groups, "_MOST_PAIRS", 200)
    hashes = scattered(1, 6000, 3 * radius // 2, 1500, balanced)
    assert np.array_equal(near_groups(hashes, radius), by_comparing_all(hashes, radius))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(0, 6), st.integers(0, 8))
def test_a_second_hash_must_be_near_as_well(seed: int, number: int, radius: int, second_radius: int) -> None:
    first, second = (scattered(seed + part, number, 3, 20, True) for part in (0, 1))
    near = np.bitwise_count(first[:, None] ^ first[None]) <= radius
    near &= np.bitwise_count(second[:, None] ^ second[None]) <= second_radius
    expected = in_order_of_occurrence(connected_components(near, directed=False)[1])
    assert np.array_equal(near_groups(first, radius, second, second_radius), expected)


def test_a_million_equal_hashes_are_one_group() -> None:
    assert not near_groups(np.full(1_000_000, 7, np.uint64), 6).any()


def test_groups_are_transitive_and_numbered_as_they_occur() -> None:
    assert near_groups(np.array([2**64 - 1, 0b1111, 0b0011, 0, 2**64 - 2], np.uint64), 2).tolist() == [0, 1, 1, 1, 0]


def test_the_order_of_hashes_does_not_change_who_is_with_whom() -> None:
    hashes = scattered(2, 500, 3, 60, True)
    shuffled = np.random.default_rng(0).permutation(500)
    assert np.array_equal(near_groups(hashes[shuffled], 4), in_order_of_occurrence(near_groups(hashes, 4)[shuffled]))


def test_no_hashes_are_no_groups() -> None:
    assert near_groups(np.empty(0, np.uint64), 4).tolist() == []


def test_a_radius_that_is_no_number_of_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="radius 65: must be 0 to 64 bits"):
        near_groups(np.zeros(2, np.uint64), 65)


def test_joined_groupings_unite_what_either_unites() -> None:
    names, sizes = np.array([0, 1, 0, 2, 3]), np.array([0, 1, 2, 1, 3])
    assert joined_groups([names, sizes]).tolist() == [0, 1, 0, 1, 2]
    assert joined_groups([names]).tolist() == names.tolist()
