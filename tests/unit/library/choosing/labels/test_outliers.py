import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from library.choosing.labels.outliers import far_out, neighbour_distances


def test_a_planted_stranger_is_the_farthest_of_all() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.1, (200, 16)).astype(np.float32)
    features[:100, 0] += 3
    features[100:, 1] += 3
    features[7] = 0
    features[7, 2] = 3
    distances = neighbour_distances(features)
    assert distances.argmax() == 7
    assert far_out(distances).argmax() == 7


@given(st.integers(0, 2**32 - 1))
def test_distances_do_not_depend_on_order_shift_or_unit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1, (40, 5)).astype(np.float32)
    distances = neighbour_distances(features)
    order = rng.permutation(40)
    np.testing.assert_allclose(neighbour_distances(features[order]), distances[order], atol=1e-4)
    np.testing.assert_allclose(neighbour_distances(features * 4 + 2), distances, atol=1e-4)


def test_equal_pictures_have_no_distance_and_one_has_no_neighbour() -> None:
    assert neighbour_distances(np.ones((5, 3), np.float32)).max() <= 1
    assert neighbour_distances(np.ones((1, 3), np.float32)).tolist() == [0]
    pairs = np.repeat(np.eye(6, dtype=np.float32), 2, axis=0)
    assert neighbour_distances(pairs, neighbours=1).max() < 1e-5


def test_references_are_a_sample_where_there_are_many() -> None:
    features = np.random.default_rng(0).normal(0, 0.1, (500, 8)).astype(np.float32)
    features[np.arange(500), np.arange(500) % 4] += 3
    features[499] = [0, 0, 0, 0, 3, 0, 0, 0]
    sampled = neighbour_distances(features, references=100)
    assert sampled.argmax() == 499
    assert (sampled == neighbour_distances(features, references=100)).all()


def test_values_beyond_the_outer_fences_are_far_out() -> None:
    values = np.array([1.0, 2, 3, 4, 5, 100, -100, np.nan])
    outside = far_out(values)
    assert (np.flatnonzero(outside).tolist(), np.sign(outside[5:7]).tolist()) == ([5, 6], [1, -1])
    assert far_out(np.array([28.0] * 20 + [56, 14]))[-2:].tolist() == [1, -0.5]
    assert far_out(np.full(3, np.nan)).tolist() == [0, 0, 0]
