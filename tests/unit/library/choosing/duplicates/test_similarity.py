"""Groups by the cosine of embeddings: planted vectors, and how embeddings join what hashes leave apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from library.choosing.duplicates import similarity
from library.choosing.duplicates.fingerprints import REASONS, Rule, fingerprints
from library.choosing.duplicates.gallery import groups_to_show, summarize
from library.choosing.duplicates.groups import joined_groups
from library.choosing.duplicates.keeping import Disagreeing, Duplicates, choose
from library.choosing.duplicates.similarity import (
    MOST_PICTURES,
    UnitVectors,
    check_pictures,
    cosines,
    is_similar,
    similar_groups,
    unit_vectors,
)
from library.errors import UsageError


def column(*vectors: list[float] | None) -> pa.Array:
    width = next(len(vector) for vector in vectors if vector is not None)
    return pa.array(vectors, pa.list_(pa.float32(), width))


def planted(
    seed: int, groups: int, copies: int, noise: float, width: int = 32
) -> tuple[UnitVectors, NDArray[np.int64]]:
    """Directions that have little in common, with copies of each in mixed order; and the group of each vector."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(groups, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    owners = random.permutation(np.repeat(np.arange(groups), copies))
    moved = directions[owners] + noise / np.sqrt(width) * random.normal(size=(len(owners), width))
    lengths = random.uniform(0.01, 100, (len(owners), 1))
    return unit_vectors([column(*(moved * lengths).tolist())], len(owners)), joined_groups([owners])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(1, 12), copies=st.integers(1, 6), block=st.integers(1, 40))
def test_planted_copies_are_found_whatever_their_length_and_the_blocks(
    seed: int, groups: int, copies: int, block: int
) -> None:
    vectors, owners = planted(seed, groups, copies, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_BLOCK", block)
        assert similar_groups(vectors, 0.95).tolist() == owners.tolist()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.1, 0.3, 0.5, 0.8]))
def test_groups_join_exactly_the_pairs_that_reach_the_threshold(seed: int, threshold: float) -> None:
    vectors, _ = planted(seed, 20, 2, 0.7, width=8)
    every = np.arange(len(vectors))
    alike = is_similar(cosines(vectors, every[:, None], every[None]), threshold)
    for _ in range(len(vectors).bit_length()):  # a chain of this length doubles each time
        alike = alike @ alike
    assert similar_groups(vectors, threshold).tolist() == joined_groups([alike.argmax(1)]).tolist()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    threshold=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    head=st.integers(1, 4),
    decay=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_bounds_from_few_coordinates_miss_no_pair(seed: int, threshold: float, head: int, decay: float) -> None:
    random = np.random.default_rng(seed)
    # Some directions matter more than others, in a basis that is turned at random; copies, and a missing vector.
    scales = np.arange(1, 13) ** -decay
    turn, _ = np.linalg.qr(random.normal(size=(12, 12)))
    values = (random.normal(size=(40, 12)) * scales) @ turn
    values = np.concatenate([values, values[:9] + 0.1 * random.normal(size=(9, 12)) * scales.min()])
    vectors = unit_vectors([column(*values.tolist(), None)], 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_BLOCK", 7)
        plain = similar_groups(vectors, threshold)
        for name, value in (("FEW", 1), ("_HEADS", (head,)), ("_MOST_LEFT", 1.0), ("_SAMPLE", 30)):
            patch.setattr(similarity, name, value)
        bounds = similarity.bounding(vectors, threshold)
        assert bounds is not None
        assert bounds.shape == (50, head + 1)
        present = vectors.any(1)
        assert (bounds @ bounds.T >= vectors @ vectors.T - 1e-5)[present][:, present].all()
        assert similar_groups(vectors, threshold).tolist() == plain.tolist()


def test_all_numbers_are_compared_where_a_bound_would_rule_out_too_little() -> None:
    random = np.random.default_rng(1)
    for few in (similarity.FEW, similarity.FEW - 1):
        vectors = random.normal(size=(few, 40)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        # Without a direction that matters, eight of forty coordinates tell little; and a few vectors are not worth it.
        assert similarity.bounding(vectors, 0.3) is None
    low = np.concatenate([random.normal(size=(similarity.FEW, 6)), np.zeros((similarity.FEW, 40))], 1)
    low = (low / np.linalg.norm(low, axis=1, keepdims=True)).astype(np.float32)
    short = similarity.bounding(low, 0.99)
    assert short is not None
    assert short.shape[1] == 9


def test_progress_rises_with_the_pairs_that_are_compared() -> None:
    vectors, _ = planted(0, 10, 3, 0.1)
    shares: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_BLOCK", 10)
        similar_groups(vectors, 0.9, shares.append)
    assert shares == pytest.approx([5 / 9, 8 / 9, 1])


def test_equal_vectors_reach_a_cosine_of_one() -> None:
    vector = np.random.default_rng(5).normal(size=700).tolist()
    vectors = unit_vectors([column(vector, vector), column([3.0 * value for value in vector])], 3)
    assert similar_groups(vectors, 1.0).tolist() == [0, 0, 0]
    assert is_similar(cosines(vectors, np.arange(3), np.zeros(3, np.int64)), 1.0).all()


def test_a_picture_without_an_embedding_is_similar_to_none() -> None:
    vectors = unit_vectors([column([0.0, 0.0], None), column([1e-30, 1e30], None, [0.0, 2.0])], 5)
    assert similar_groups(vectors, 0.01).tolist() == [0, 1, 2, 3, 2]
    assert np.isnan(cosines(vectors, np.array([0, 1, 2]), np.array([0, 3, 3]))).all()
    assert similar_groups(unit_vectors([], 0), 0.5).tolist() == []


def test_embeddings_of_two_models_are_refused_and_so_are_too_many() -> None:
    with pytest.raises(UsageError, match="embeddings of 2 and of 3 numbers"):
        unit_vectors([column([1.0, 2.0]), column([1.0, 2.0, 3.0])], 2)
    check_pictures(MOST_PICTURES)
    with pytest.raises(UsageError, match=f"at most {MOST_PICTURES:,} pictures"):
        check_pictures(MOST_PICTURES + 1)


def pictures(*hashes: int, labels: str = "") -> pa.Table:
    """Pictures that differ in everything; the first are the largest."""
    rows = len(hashes)
    digests = pa.array([bytes([row]) * 16 for row in range(rows)])
    return pa.table(
        {
            "key": [f"key-{row}" for row in range(rows)],
            "label": list(labels or "a" * rows),
            "format": ["jpeg"] * rows,
            "width": list(range(90, 90 - rows, -1)),
            "height": [30] * rows,
            "num_bytes": [900] * rows,
            "bytes_digest": digests,
            "pixels_digest": digests,
            "contrast": [0.2] * rows,
            "phash": pa.array(hashes, pa.uint64()),
            "dhash": pa.array([0] * rows, pa.uint64()),
        }
    )


def found(table: pa.Table, vectors: UnitVectors, disagreeing: Disagreeing = "keep") -> Duplicates:
    return choose(table, fingerprints(table, Rule(near=4, cosine=0.9), vectors), disagreeing)


#: Hashes near: 0 and 1. Embeddings similar: 1 and 2 (cosine 0.96), 3 and 4 (1).
HASHES = (0, 1, 2**40 - 1, 2**64 - 1, 0xFF00_FF00_FF00_FF00)
VECTORS = unit_vectors([column([1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 5.0])], 5)


def test_embeddings_join_the_groups_of_hashes_with_a_reason_of_their_own() -> None:
    result = found(pictures(*HASHES), VECTORS)
    assert result.groups.tolist() == [0, 0, 0, 1, 1]
    # Picture 1 is dropped for 0, which 2 does not resemble: so 2 stays.
    assert [REASONS[reason] for reason in result.reasons] == ["", "near_duplicate", "", "", "similar_embedding"]
    assert result.partners.tolist() == [-1, 0, -1, -1, 3]
    assert np.allclose(result.cosines, [np.nan, 0.6, np.nan, np.nan, 1], equal_nan=True)
    numbers = summarize(result)
    assert numbers.dropped == {"near_duplicate": 1, "similar_embedding": 1}
    assert (numbers.by_distance, numbers.by_cosine) == ({1: 1}, {"1.00": 1})
    # What embeddings alone join is shown before what hashes join.
    assert [members.tolist() for members in groups_to_show(result)] == [[3, 4], [0, 2, 1]]


def test_labels_that_disagree_keep_a_group_of_embeddings_whole() -> None:
    result = found(pictures(*HASHES, labels="aaabc"), VECTORS)
    assert [REASONS[reason] for reason in result.reasons] == ["", "near_duplicate", "", "", ""]
    assert result.disagreeing.tolist() == [False, False, False, True, True]
