"""Numbers of a classifier: against scikit-learn, SciPy and sums done by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from library.evaluation import (
    Outcomes,
    bootstrap_intervals,
    calibration,
    confused_pairs,
    confusion_matrix,
    evaluate,
    mistakes,
    per_class,
)


def outcomes(pictures: int = 500, classes: int = 7, skill: float = 1.5, seed: int = 0) -> Outcomes:
    """A classifier that is right now and then, of pictures that are not spread evenly over the classes."""
    rng = np.random.default_rng(seed)
    truth = np.minimum(rng.geometric(0.35, pictures) - 1, classes - 1)
    logits = rng.normal(size=(pictures, classes))
    logits[np.arange(pictures), truth] += skill
    return made(truth, np.exp(logits) / np.exp(logits).sum(1, keepdims=True))


def made(truth: Any, probabilities: Any) -> Outcomes:
    probabilities = np.asarray(probabilities, np.float32)
    names = tuple("abcdefghij"[: probabilities.shape[1]])
    keys = tuple(f"{row:04d}" for row in range(len(probabilities)))
    return Outcomes(names, keys, np.asarray(truth, np.int64), probabilities)


def test_accuracy_loss_and_every_class_are_those_of_scikit_learn() -> None:
    some = outcomes()
    got = evaluate(some)
    ids = np.arange(7)
    assert got.pictures == 500
    assert got.top1 == pytest.approx(metrics.accuracy_score(some.truth, some.predicted))
    assert got.top5 == pytest.approx(metrics.top_k_accuracy_score(some.truth, some.probabilities, k=5, labels=ids))
    exact = some.probabilities.astype(np.float64)
    assert got.loss == pytest.approx(metrics.log_loss(some.truth, exact / exact.sum(1, keepdims=True)), abs=1e-6)
    report: Any = metrics.classification_report(some.truth, some.predicted, labels=ids, output_dict=True)
    for number, score in enumerate(got.per_class):
        wanted = report[str(number)]
        assert score.precision == pytest.approx(wanted["precision"])
        assert score.recall == pytest.approx(wanted["recall"])
        assert score.f1 == pytest.approx(wanted["f1-score"])
        assert score.support == wanted["support"]


def test_a_class_without_pictures_or_predictions_has_no_score_instead_of_a_made_up_one() -> None:
    scores = per_class(made([0, 0, 1], [[0.9, 0.1, 0, 0], [0.2, 0.7, 0.1, 0], [0.1, 0.8, 0, 0.1]]))
    assert [(score.precision, score.recall, score.support) for score in scores] == [
        (1.0, 0.5, 2),
        (0.5, 1.0, 1),
        (None, None, 0),
        (None, None, 0),
    ]
    assert scores[2].f1 is None
    never_said = per_class(made([0, 1], [[0.9, 0.1], [0.9, 0.1]]))[1]
    assert (never_said.precision, never_said.recall, never_said.f1) == (None, 0.0, 0.0)


def test_the_confusion_matrix_counts_every_picture_once_by_true_row_and_predicted_column() -> None:
    some = outcomes()
    matrix = confusion_matrix(some)
    assert matrix.sum() == 500
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(some.truth, minlength=7))
    np.testing.assert_array_equal(matrix.sum(0), np.bincount(some.predicted, minlength=7))
    assert np.trace(matrix) == some.correct.sum()


def test_with_another_order_of_the_classes_the_numbers_stay() -> None:
    some = outcomes()
    order = np.random.default_rng(1).permutation(7)
    turned = Outcomes(
        tuple(some.classes[old] for old in order),
        some.keys,
        np.argsort(order)[some.truth].astype(np.int64),
        some.probabilities[:, order],
    )
    a, b = evaluate(some), evaluate(turned)
    assert (a.top1, a.top5, a.loss, a.intervals, a.calibration) == (b.top1, b.top5, b.loss, b.intervals, b.calibration)
    assert {score.name: score for score in a.per_class} == {score.name: score for score in b.per_class}
    np.testing.assert_array_equal(a.confusion[np.ix_(order, order)], b.confusion)


def test_among_the_most_probable_equals_count_in_the_order_of_the_classes_as_a_prediction_ranks_them() -> None:
    even = made([0, 1, 2], np.full((3, 3), 1 / 3))
    assert even.correct.tolist() == even.among(1).tolist() == [True, False, False]
    assert even.among(2).tolist() == [True, True, False]
    assert even.among(5).all()


def test_a_true_class_of_probability_zero_costs_much_and_not_infinitely_much() -> None:
    got = evaluate(made([0, 1], [[0.0, 1.0], [0.0, 1.0]]))
    assert got.loss == pytest.approx(87.336 / 2, abs=0.01)


def test_a_classifier_that_is_sure_and_right_is_perfectly_calibrated_and_one_that_is_sure_and_wrong_not_at_all() -> (
    None
):
    sure = np.eye(4)[[0, 1, 2, 3, 0, 1]]
    assert evaluate(made([0, 1, 2, 3, 0, 1], sure)).calibration.ece == 0
    assert evaluate(made([1, 2, 3, 0, 1, 2], sure)).calibration.ece == 1
    assert evaluate(made([0, 1, 2, 3, 0, 1], sure)).top1 == 1


def test_calibration_by_hand() -> None:
    got = calibration(np.array([0.1, 0.2, 0.61, 0.69, 0.8]), np.array([True, False, True, True, False]), bins=5)
    assert [(one.count, one.accuracy) for one in got.bins] == [(2, 0.5), (0, None), (0, None), (3, 2 / 3), (0, None)]
    assert got.bins[3].confidence == pytest.approx(0.7)
    assert got.ece == pytest.approx(2 / 5 * abs(0.5 - 0.15) + 3 / 5 * abs(2 / 3 - 0.7))


def test_a_confidence_that_tells_the_truth_has_a_small_calibration_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 20_000)
    assert calibration(confidence, rng.random(20_000) < confidence).ece < 0.02
    assert calibration(confidence, rng.random(20_000) < confidence - 0.15).ece == pytest.approx(0.15, abs=0.02)


def test_intervals_contain_the_estimate_are_the_same_for_the_same_seed_and_close_to_scipys() -> None:
    some = outcomes()
    got = evaluate(some)
    for name in ("top1", "top5", "loss"):
        low, high = got.intervals[name]
        assert low < getattr(got, name) < high
    assert evaluate(some).intervals == got.intervals
    assert evaluate(some, seed=1).intervals != got.intervals
    reference: Any = stats.bootstrap((some.losses,), np.mean, method="percentile", n_resamples=2000, batch=200)
    wanted = reference.confidence_interval
    assert got.intervals["loss"] == pytest.approx((wanted.low, wanted.high), abs=0.02)


def test_a_large_dataset_is_drawn_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values: NDArray[np.float64] = np.random.default_rng(0).random((2, 300))
    whole = bootstrap_intervals(values, seed=3, resamples=50)
    monkeypatch.setattr("library.evaluation._RESAMPLED_AT_ONCE", 1000)
    assert bootstrap_intervals(values, seed=3, resamples=50) == whole


def test_the_most_confident_mistakes_come_first_and_equals_by_key() -> None:
    found = mistakes(made([0, 0, 1, 1], [[0.4, 0.6], [0.1, 0.9], [0.9, 0.1], [0.2, 0.8]]), 3)
    assert [(one.key, one.label, one.predicted) for one in found] == [
        ("0001", "a", "b"),
        ("0002", "b", "a"),
        ("0000", "a", "b"),
    ]
    assert found[0].confidence == pytest.approx(0.9)
    assert len(mistakes(outcomes(), 5)) == 5


def test_the_most_confused_pairs_leave_out_what_is_right() -> None:
    matrix = np.array([[90, 10, 0], [3, 7, 0], [0, 0, 0]])
    pairs = [(one.label, one.predicted, one.count, one.share) for one in confused_pairs(matrix, "abc", 9)]
    assert pairs == [("a", "b", 10, 0.1), ("b", "a", 3, 0.3)]


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 pictures of 3 classes do not go with"):
        Outcomes(("a", "b", "c"), ("x", "y"), np.zeros(2, np.int64), np.zeros((2, 2), np.float32))
