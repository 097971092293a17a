"""Metrics from sums: compared with scikit-learn, SciPy, all probabilities, and values computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from library.evaluation.metrics import Evaluation, confused_pairs, evaluate
from library.evaluation.sums import CALIBRATION_BINS, MISTAKES, Example, Outcomes, Sums


def outcomes(pictures: int = 500, classes: int = 7, skill: float = 1.5, seed: int = 0) -> Outcomes:
    """Outcomes of a mediocre classifier on pictures of unequally frequent classes."""
    rng = np.random.default_rng(seed)
    truth = np.minimum(rng.geometric(0.35, pictures) - 1, classes - 1)
    logits = rng.normal(size=(pictures, classes))
    logits[np.arange(pictures), truth] += skill
    return outcomes_of(truth, np.exp(logits) / np.exp(logits).sum(1, keepdims=True))


def outcomes_of(truth: Any, probabilities: Any) -> Outcomes:
    probabilities = np.asarray(probabilities, np.float32)
    names = tuple("abcdefghij"[: probabilities.shape[1]])
    keys = tuple(f"{row:04d}" for row in range(len(probabilities)))
    return Outcomes(names, keys, np.asarray(truth, np.int64), probabilities)


def evaluated(some: Outcomes) -> Evaluation:
    return evaluate(some.classes, summed(some))


def summed(*parts: Outcomes) -> Sums:
    sums = Sums()
    for part in parts:
        sums.add(part)
    return sums


def rows_of(some: Outcomes, rows: Any) -> Outcomes:
    """The outcomes of some of the pictures."""
    keys = tuple(some.keys[row] for row in rows)
    return Outcomes(some.classes, keys, some.truth[rows], some.probabilities[rows])


def confident(confidence: Any, correct: Any) -> Outcomes:
    """Ten classes: the first has probability `confidence` and is true if `correct`; the others share the rest."""
    first = np.asarray(confidence, np.float64)[:, None]
    return outcomes_of(np.where(correct, 0, 1), np.hstack([first, np.repeat((1 - first) / 9, 9, 1)]))


def test_accuracy_loss_and_class_scores_equal_those_of_scikit_learn() -> None:
    some = outcomes()
    evaluation = evaluated(some)
    ids = np.arange(7)
    assert evaluation.pictures == 500
    assert evaluation.top1 == pytest.approx(metrics.accuracy_score(some.truth, some.predicted))
    assert evaluation.top5 == pytest.approx(
        metrics.top_k_accuracy_score(some.truth, some.probabilities, k=5, labels=ids)
    )
    exact = some.probabilities.astype(np.float64)
    assert evaluation.loss == pytest.approx(metrics.log_loss(some.truth, exact / exact.sum(1, keepdims=True)), abs=1e-6)
    assert evaluation.loss == pytest.approx(-np.log(exact[np.arange(500), some.truth]).mean(), abs=1e-9)
    report: Any = metrics.classification_report(some.truth, some.predicted, labels=ids, output_dict=True)
    for number, score in enumerate(evaluation.per_class):
        expected = report[str(number)]
        assert score.precision == pytest.approx(expected["precision"])
        assert score.recall == pytest.approx(expected["recall"])
        assert score.f1 == pytest.approx(expected["f1-score"])
        assert score.support == expected["support"]


def test_a_class_without_pictures_or_predictions_has_no_score() -> None:
    some = outcomes_of([0, 0, 1], [[0.9, 0.1, 0, 0], [0.2, 0.7, 0.1, 0], [0.1, 0.8, 0, 0.1]])
    scores = evaluated(some).per_class
    assert [(score.precision, score.recall, score.support) for score in scores] == [
        (1.0, 0.5, 2),
        (0.5, 1.0, 1),
        (None, None, 0),
        (None, None, 0),
    ]
    assert scores[2].f1 is None
    never_predicted = evaluated(outcomes_of([0, 1], [[0.9, 0.1], [0.9, 0.1]])).per_class[1]
    assert (never_predicted.precision, never_predicted.recall, never_predicted.f1) == (None, 0.0, 0.0)


def test_the_confusion_matrix_has_true_rows_and_predicted_columns() -> None:
    some = outcomes()
    matrix = evaluated(some).confusion
    assert matrix.sum() == 500
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(some.truth, minlength=7))
    np.testing.assert_array_equal(matrix.sum(0), np.bincount(some.predicted, minlength=7))
    assert np.trace(matrix) == some.correct.sum()
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(some.truth, some.predicted, labels=np.arange(7)))


def test_the_order_of_the_classes_does_not_change_the_metrics() -> None:
    some = outcomes()
    order = np.random.default_rng(1).permutation(7)
    permuted = Outcomes(
        tuple(some.classes[old] for old in order),
        some.keys,
        np.argsort(order)[some.truth].astype(np.int64),
        some.probabilities[:, order],
    )
    a, b = evaluated(some), evaluated(permuted)
    assert (a.top1, a.top5, a.loss, a.intervals, a.calibration) == (b.top1, b.top5, b.loss, b.intervals, b.calibration)
    assert {score.name: score for score in a.per_class} == {score.name: score for score in b.per_class}
    np.testing.assert_array_equal(a.confusion[np.ix_(order, order)], b.confusion)


def test_ties_among_the_most_probable_count_in_the_order_of_classes() -> None:
    even = outcomes_of([0, 1, 2], np.full((3, 3), 1 / 3))
    assert even.correct.tolist() == even.among(1).tolist() == [True, False, False]
    assert even.among(2).tolist() == [True, True, False]
    assert even.among(5).all()


def test_the_loss_of_a_true_class_of_probability_zero_is_finite() -> None:
    evaluation = evaluated(outcomes_of([0, 1], [[0.0, 1.0], [0.0, 1.0]]))
    assert evaluation.loss == pytest.approx(87.336 / 2, abs=0.01)


def test_certain_and_correct_is_calibrated_and_certain_and_wrong_is_not() -> None:
    certain = np.eye(4)[[0, 1, 2, 3, 0, 1]]
    assert evaluated(outcomes_of([0, 1, 2, 3, 0, 1], certain)).calibration.ece == 0
    assert evaluated(outcomes_of([1, 2, 3, 0, 1, 2], certain)).calibration.ece == 1
    assert evaluated(outcomes_of([0, 1, 2, 3, 0, 1], certain)).top1 == 1


def test_calibration_by_hand() -> None:
    # Bins of 1/15: 0.15 and 0.19 are in the third, 0.62 and 0.65 in the tenth, 0.79 in the twelfth.
    evaluation = evaluated(confident([0.15, 0.19, 0.62, 0.65, 0.79], [True, False, True, True, False])).calibration
    assert [(number, one.count, one.accuracy) for number, one in enumerate(evaluation.bins) if one.count] == [
        (2, 2, 0.5),
        (9, 2, 1.0),
        (11, 1, 0.0),
    ]
    assert evaluation.bins[9].confidence == pytest.approx(0.635)
    assert evaluation.ece == pytest.approx(2 / 5 * abs(0.5 - 0.17) + 2 / 5 * abs(1 - 0.635) + 1 / 5 * 0.79)
    assert (evaluation.bins[0].confidence, evaluation.bins[0].accuracy) == (None, None)


def test_calibration_from_sums_equals_that_of_all_confidences() -> None:
    some = outcomes()
    evaluation, confidence = evaluated(some).calibration, some.probabilities.max(1).astype(np.float64)
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    gaps = [abs((some.correct[bins == one] - confidence[bins == one]).sum()) for one in range(CALIBRATION_BINS)]
    assert evaluation.ece == pytest.approx(sum(gaps) / 500, abs=1e-9)
    assert [one.count for one in evaluation.bins] == np.bincount(bins, minlength=CALIBRATION_BINS).tolist()


def test_an_honest_confidence_has_a_small_calibration_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 20_000)
    assert evaluated(confident(confidence, rng.random(20_000) < confidence)).calibration.ece < 0.02
    late = evaluated(confident(confidence, rng.random(20_000) < confidence - 0.15)).calibration
    assert late.ece == pytest.approx(0.15, abs=0.02)


def test_intervals_equal_those_of_resampling_the_pictures() -> None:
    some = outcomes()
    evaluation = evaluated(some)
    for name, values, tolerance in (
        ("top1", some.correct, 0.005),
        ("top5", some.among(5), 0.005),
        ("loss", some.losses, 0.02),
    ):
        low, high = evaluation.intervals[name]
        assert low < getattr(evaluation, name) < high
        drawn: Any = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, batch=200, rng=0)
        interval = drawn.confidence_interval
        assert evaluation.intervals[name] == pytest.approx((interval.low, interval.high), abs=tolerance)


def test_intervals_of_one_picture_or_a_perfect_classifier_are_points() -> None:
    one = evaluated(outcomes_of([0], [[0.25, 0.75]]))
    assert one.intervals == {"top1": (0, 0), "top5": (1, 1), "loss": (one.loss, one.loss)}
    assert evaluated(outcomes_of([0] * 50, [[1.0, 0.0]] * 50)).intervals == {
        "top1": (1, 1),
        "top5": (1, 1),
        "loss": (0, 0),
    }


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=60, max_size=60), st.permutations(range(5)))
def test_any_division_into_shards_in_any_order_gives_the_same_sums(shards: list[int], order: list[int]) -> None:
    some = outcomes(60)
    whole, total = summed(some), Sums()
    for shard in order:
        rows = [row for row, number in enumerate(shards) if number == shard]
        part = summed(*(rows_of(some, rows[first : first + 7]) for first in range(0, len(rows), 7)))
        part.examples = [Example(mistake.key, b"", "png") for mistake in part.mistakes]
        total.merge(Sums.model_validate_json(part.model_dump_json()))
    assert {example.key for example in total.examples} == {mistake.key for mistake in total.mistakes}
    assert total.model_copy(update={"examples": []}) == whole


def test_the_size_of_sums_does_not_grow_with_the_pictures() -> None:
    some = outcomes(2000, 3)
    few, many = summed(rows_of(some, range(400))), summed(*(rows_of(some, range(2000)) for _ in range(20)))
    assert len(many.model_dump_json()) < 1.2 * len(few.model_dump_json())


def test_the_most_confident_mistakes_come_first_and_ties_by_key() -> None:
    mistakes = summed(outcomes_of([0, 0, 1, 1], [[0.4, 0.6], [0.1, 0.9], [0.9, 0.1], [0.2, 0.8]])).mistakes
    assert [(one.key, one.label, one.predicted) for one in mistakes] == [
        ("0001", "a", "b"),
        ("0002", "b", "a"),
        ("0000", "a", "b"),
    ]
    assert mistakes[0].confidence == pytest.approx(0.9)
    some = outcomes()
    ranked = sorted(some.confidence[~some.correct].tolist(), reverse=True)
    assert [one.confidence for one in summed(some).mistakes] == ranked[:MISTAKES]


def test_the_most_confused_pairs_leave_out_correct_predictions() -> None:
    matrix = np.array([[90, 10, 0], [3, 7, 0], [0, 0, 0]])
    pairs = [(one.label, one.predicted, one.count, one.share) for one in confused_pairs(matrix, "abc", 9)]
    assert pairs == [("a", "b", 10, 0.1), ("b", "a", 3, 0.3)]


def test_arrays_whose_shapes_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 pictures of 3 classes do not match"):
        Outcomes(("a", "b", "c"), ("x", "y"), np.zeros(2, np.int64), np.zeros((2, 2), np.float32))
