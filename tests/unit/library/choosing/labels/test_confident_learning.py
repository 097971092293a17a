from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from library.choosing.labels.confident_learning import (
    Pruning,
    calibrated_joint,
    class_thresholds,
    confident_joint,
    find_label_errors,
    label_quality,
)


def noisy(
    seed: int, pictures: int = 600, classes: int = 4, share: float = 0.1
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """True classes, labels of which a share is wrong, and probabilities of a good classifier of the true classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, pictures)
    wrong = rng.random(pictures) < share
    labels = np.where(wrong, (truth + rng.integers(1, classes, pictures)) % classes, truth)
    logits = rng.normal(0, 1, (pictures, classes))
    logits[np.arange(pictures), truth] += 5
    exponents = np.exp(logits)
    return truth, labels, exponents / exponents.sum(1, keepdims=True)


def test_planted_errors_are_found_and_the_true_class_suggested() -> None:
    truth, labels, probabilities = noisy(0)
    errors = find_label_errors(labels, probabilities)
    found, planted = set(errors.rows.tolist()), set(np.flatnonzero(truth != labels).tolist())
    assert len(found & planted) > 0.9 * len(planted)
    assert len(found & planted) > 0.8 * len(found)
    right = [row in planted for row in errors.rows.tolist()]
    assert (errors.suggested == truth[errors.rows])[right].mean() > 0.95
    assert sum(right[:20]) >= 19  # the most suspicious ones come first
    assert errors.share == pytest.approx(len(planted) / len(labels), abs=0.04)


@given(st.integers(0, 2**32 - 1))
def test_quality_ascends_within_zero_and_one(seed: int) -> None:
    _, labels, probabilities = noisy(seed, pictures=80)
    errors = find_label_errors(labels, probabilities)
    assert (np.diff(errors.quality) >= 0).all()
    assert ((errors.quality >= 0) & (errors.quality <= 1)).all()
    assert (errors.suggested != labels[errors.rows]).all()
    np.testing.assert_allclose(errors.quality, label_quality(labels[errors.rows], probabilities[errors.rows]))


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_pictures_and_classes_does_not_matter(seed: int) -> None:
    _, labels, probabilities = noisy(seed, pictures=120)
    errors = find_label_errors(labels, probabilities)
    rng = np.random.default_rng(seed)
    pictures, classes = rng.permutation(120), rng.permutation(4)
    shuffled = find_label_errors(np.argsort(classes)[labels][pictures], probabilities[pictures][:, classes])
    assert set(pictures[shuffled.rows].tolist()) == set(errors.rows.tolist())
    by_row = dict(zip(errors.rows.tolist(), errors.suggested.tolist(), strict=True))
    assert {
        int(pictures[row]): int(classes[name])
        for row, name in zip(shuffled.rows.tolist(), shuffled.suggested.tolist(), strict=True)
    } == by_row


@given(st.integers(0, 2**32 - 1))
def test_the_calibrated_joint_counts_every_picture_once(seed: int) -> None:
    _, labels, probabilities = noisy(seed, pictures=90)
    joint = calibrated_joint(labels, probabilities)
    np.testing.assert_allclose(joint.sum(1), np.bincount(labels, minlength=4))
    counted = confident_joint(labels, probabilities)
    assert counted.sum() <= 90
    cautious = find_label_errors(labels, probabilities, pruning="confident")
    assert len(cautious.rows) <= counted.sum() - np.trace(counted)


def test_thresholds_and_joint_of_a_small_example_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.4, 0.6]])
    np.testing.assert_allclose(class_thresholds(labels, probabilities), [0.6, 0.7])
    assert confident_joint(labels, probabilities).tolist() == [[2, 1], [0, 1]]
    np.testing.assert_allclose(calibrated_joint(labels, probabilities), [[2, 1], [0, 2]])
    for pruning in get_args(Pruning):
        errors = find_label_errors(labels, probabilities, pruning=pruning)
        assert (errors.rows.tolist(), errors.suggested.tolist()) == ([2], [1])
        assert errors.quality == pytest.approx([0.1])


def test_right_labels_and_absent_classes_give_no_errors() -> None:
    labels = np.array([0, 0, 2, 2])
    errors = find_label_errors(labels, np.eye(4)[labels])
    assert errors.rows.size == 0
    assert errors.share == 0
    empty = find_label_errors(np.zeros(0, np.int64), np.zeros((0, 3)))
    assert empty.rows.size == 0
    assert empty.share == 0


def test_labels_and_probabilities_that_do_not_match_are_refused() -> None:
    for labels, shape in (([0, 1], (3, 2)), ([0, 2], (2, 2)), ([0, -1], (2, 2))):
        with pytest.raises(ValueError, match="labels"):
            find_label_errors(np.asarray(labels), np.full(shape, 0.5))
