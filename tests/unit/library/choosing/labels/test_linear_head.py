import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from library.choosing.labels.linear_head import PENALTY, LinearHead, out_of_fold


def blobs(pictures: int = 300, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, pictures)
    features = rng.normal(0, 1, (pictures, 8)) + 3 * rng.normal(0, 1, (classes, 8))[labels]
    return features.astype(np.float32), labels


def test_the_head_is_scikit_learns_logistic_regression() -> None:
    features, labels = blobs()
    head = LinearHead.fit(features, labels, 3)
    inputs = (features - head.mean) / head.scale
    other = LogisticRegression(C=1 / (PENALTY * len(labels)), max_iter=1000, tol=1e-8).fit(inputs, labels)
    np.testing.assert_allclose(head.probabilities(features), other.predict_proba(inputs), atol=5e-3)


def test_fitting_and_predicting_hold_one_copy_of_the_pictures_of_a_fold() -> None:
    features = np.random.default_rng(0).normal(3, 2, (20_000, 64)).astype(np.float32)
    labels, folds = (features[:, 0] > 3).astype(np.int64), np.arange(20_000) % 5
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        out_of_fold(features, labels, 2, folds, only=[0])
        used = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert 0.8 < used / features.nbytes < 1.3


def test_pictures_are_overwritten_only_on_request() -> None:
    features, labels = blobs()
    kept = features.copy()
    head = LinearHead.fit(features, labels, 3)
    np.testing.assert_array_equal(features, kept)
    again = LinearHead.fit(features, labels, 3, overwrite=True)
    np.testing.assert_array_equal(again.weights, head.weights)
    np.testing.assert_allclose(features.std(0), 1, atol=1e-3)


def test_weights_of_two_count_like_two_copies() -> None:
    features, labels = blobs(60)
    weights = np.random.default_rng(1).integers(1, 4, 60)
    copies = np.repeat(np.arange(60), weights)
    head = LinearHead.fit(features, labels, 3, sample_weights=weights.astype(np.float64))
    scaled = (features - features.mean(0)) / features.std(0)
    copied = LinearHead.fit(scaled[copies], labels[copies], 3, penalty=1e-2)
    agreement = head.probabilities(features).argmax(1) == copied.probabilities(scaled).argmax(1)
    assert agreement.mean() > 0.97


def test_an_absent_class_and_a_constant_feature_are_no_trouble() -> None:
    features, labels = blobs(90)
    features[:, 0] = 5
    probabilities = LinearHead.fit(features, labels, 4).probabilities(features)
    assert np.isfinite(probabilities).all()
    assert probabilities.sum(1) == pytest.approx(1)
    assert probabilities[:, 3].max() < 0.1


def test_the_label_of_a_picture_does_not_change_its_own_probabilities() -> None:
    features, labels = blobs()
    folds = np.arange(len(labels)) % 5
    before = out_of_fold(features, labels, 3, folds)
    labels = labels.copy()
    labels[folds == 2] = (labels[folds == 2] + 1) % 3
    after = out_of_fold(features, labels, 3, folds)
    assert (before[folds == 2] == after[folds == 2]).all()
    assert (before[folds != 2] != after[folds != 2]).any()


def test_folds_can_be_computed_one_at_a_time() -> None:
    features, labels = blobs(120)
    folds = np.arange(120) % 4
    parts = [out_of_fold(features, labels, 3, folds, only=[fold]) for fold in range(4)]
    np.testing.assert_array_equal(sum(parts), out_of_fold(features, labels, 3, folds))
