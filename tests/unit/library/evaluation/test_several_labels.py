"""Metrics of several labels a picture, compared with scikit-learn, with resampling by hand, and over divisions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics

from library.evaluation.report.content import Content, Counts, Subject, Throughput, summary
from library.evaluation.report.page import render
from library.evaluation.robustness import order_of
from library.evaluation.several_labels import LabelsEvaluation, evaluate_labels, label_mistakes
from library.evaluation.sums import LabelScores

CLASSES = ("cat", "dog", "eel", "fox")


def pictures(count: int = 300, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Classes and probabilities of a mediocre classifier; probabilities are rounded, so many are equal."""
    rng = np.random.default_rng(seed)
    truth = rng.random((count, len(CLASSES))) < (0.5, 0.2, 0.1, 0.3)
    logits = rng.normal(size=truth.shape) + 1.5 * truth - 0.8
    return truth, np.round(1 / (1 + np.exp(-logits)), 2).astype(np.float32)


def scored(truth: Any, probabilities: Any, groups: Sequence[Sequence[int]] | None = None) -> LabelScores:
    """What is kept of pictures, added in groups of rows."""
    whole = LabelScores()
    for rows in groups if groups is not None else [range(len(truth))]:
        part = LabelScores()
        keys = [f"{row:05d}" for row in rows]
        chosen = list(rows)
        mistakes = label_mistakes(CLASSES, keys, truth[chosen], probabilities[chosen], 0.5)
        part.add(np.array([order_of(key) for key in keys], np.uint64), truth[chosen], probabilities[chosen], mistakes)
        whole.merge(LabelScores.model_validate_json(part.model_dump_json()))
    return whole


def evaluated(truth: Any, probabilities: Any, threshold: float = 0.5) -> LabelsEvaluation:
    return evaluate_labels(CLASSES, scored(truth, probabilities), threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_all_metrics_equal_those_of_scikit_learn(threshold: float) -> None:
    truth, probabilities = pictures()
    found = evaluated(truth, probabilities, threshold)
    predicted = probabilities >= threshold
    sk: Any = metrics
    assert found.mean_ap == pytest.approx(sk.average_precision_score(truth, probabilities, average="macro"), abs=1e-9)
    for average in ("micro", "macro"):
        expected = sk.f1_score(truth, predicted, average=average)
        assert getattr(found, f"f1_{average}") == pytest.approx(expected, abs=1e-9)
    assert found.subset_accuracy == pytest.approx(sk.accuracy_score(truth, predicted))
    exact = probabilities.astype(np.float64)
    losses = -np.where(truth, np.log(np.maximum(exact, 1e-30)), np.log(np.maximum(1 - exact, 1e-30)))
    assert found.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert found.labels_per_picture == pytest.approx(truth.sum(1).mean())
    for number, one in enumerate(found.per_class):
        expected = sk.precision_recall_fscore_support(truth[:, number], predicted[:, number], average="binary")
        assert (one.precision, one.recall, one.f1) == pytest.approx(expected[:3])
        ranked = sk.average_precision_score(truth[:, number], probabilities[:, number])
        assert one.average_precision == pytest.approx(ranked, abs=1e-9)
        assert one.support == truth[:, number].sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_average_precision_of_few_pictures_with_ties_is_scikit_learns(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((count, len(CLASSES))) < 0.5
    truth[0] = True
    probabilities = rng.integers(0, 4, truth.shape).astype(np.float32) / 4
    for number, one in enumerate(evaluated(truth, probabilities).per_class):
        expected = metrics.average_precision_score(truth[:, number], probabilities[:, number])
        assert one.average_precision == pytest.approx(expected, abs=1e-9)


def test_a_class_that_no_picture_has_counts_in_no_mean() -> None:
    truth, probabilities = pictures(60)
    truth[:, 2], probabilities[:, 2] = False, 0
    found = evaluated(truth, probabilities)
    empty = found.per_class[2]
    assert (empty.average_precision, empty.precision, empty.recall, empty.f1, empty.interval) == (None,) * 5
    others = [0, 1, 3]
    expected = metrics.average_precision_score(truth[:, others], probabilities[:, others])
    assert found.mean_ap == pytest.approx(expected, abs=1e-9)
    assert found.f1_macro == pytest.approx(np.mean([found.per_class[number].f1 or 0 for number in others]))


def test_intervals_are_those_of_resampled_pictures() -> None:
    truth, probabilities = pictures(200)
    found = evaluated(truth, probabilities)
    rng = np.random.default_rng(7)
    drawn: dict[str, list[float]] = {"mean_ap": [], "f1_micro": [], "f1_macro": [], "subset_accuracy": []}
    sk: Any = metrics
    for _ in range(400):
        rows = rng.integers(0, 200, 200)
        some, predicted = truth[rows], probabilities[rows] >= 0.5
        drawn["mean_ap"].append(sk.average_precision_score(some, probabilities[rows]))
        drawn["f1_micro"].append(sk.f1_score(some, predicted, average="micro"))
        drawn["f1_macro"].append(sk.f1_score(some, predicted, average="macro"))
        drawn["subset_accuracy"].append((some == predicted).all(1).mean())
    for name, values in drawn.items():
        # Ends of intervals from 400 and 1,000 resamples differ by a fifth of the deviation, by chance.
        assert found.intervals[name] == pytest.approx(
            np.quantile(values, (0.025, 0.975)), abs=0.4 * float(np.std(values))
        )
        low, high = found.intervals[name]
        assert low <= getattr(found, name) <= high


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(40)), st.lists(st.integers(0, 40), max_size=4))
def test_any_division_and_order_of_shards_gives_the_same(order: list[int], cuts: list[int]) -> None:
    truth, probabilities = pictures(40)
    bounds = [0, *sorted(cuts), 40]
    groups = [order[first:last] for first, last in pairwise(bounds)]
    parts, whole = scored(truth, probabilities, groups), scored(truth, probabilities)
    assert (parts.judged, parts.mistakes) == (whole.judged, whole.mistakes)
    for one, other in zip(parts.arrays(4), whole.arrays(4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_surest_error_is_a_missed_class_or_a_wrong_one() -> None:
    truth = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.bool_)
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.05, 0.8, 0.6, 0], [0.7, 0.5, 0, 0]], np.float32)
    missed, wrong = label_mistakes(CLASSES, ["a", "b", "c"], truth, probabilities, 0.5)
    assert (missed.key, missed.label, missed.predicted) == ("b", "cat, dog", "dog, eel")
    assert missed.confidence == pytest.approx(0.95)
    assert (wrong.key, wrong.label, wrong.predicted) == ("c", "no class", "cat, dog")
    assert wrong.confidence == pytest.approx(0.7)


def test_page_and_json_show_all_metrics_and_escape_names() -> None:
    truth, probabilities = pictures(50)
    found = evaluated(truth, probabilities)
    scores = scored(truth, probabilities)
    subject = Subject(
        "/out/<tagger>", "ab" * 32, Counts(50, 50), found, scores.mistakes, curves=[{"epoch": 1, "val_f1": 0.5}]
    )
    throughput = Throughput(10.0, 1.0, 0.5, 1, "cpu", 1, 0, {}, ())
    content = Content("/data/test", "cd" * 32, [subject], throughput)
    numbers = summary(content)
    assert numbers["multilabel"] is True
    assert (numbers["mean_ap"], numbers["threshold"]) == (found.mean_ap, 0.5)
    assert numbers["per_class"][1]["average_precision"] == found.per_class[1].average_precision
    assert set(numbers["intervals"]) == {"mean_ap", "f1_micro", "f1_macro", "subset_accuracy", "loss"}
    page = render(content)
    assert "&lt;tagger&gt;" in page
    assert "<tagger>" not in page
    for text in ("mean average precision", f"{found.mean_ap:.2%}", f"{found.subset_accuracy:.2%}", "F1, macro"):
        assert text in page
    assert "Confusion matrix" not in page
    assert scores.mistakes[0].key in page
