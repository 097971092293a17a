"""The metrics of a classifier that gives a picture any number of classes, from all its probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.evaluation.metrics import QUANTILES, share_interval
from library.evaluation.sums import LabelScores, Mistake

#: Intervals take as many resamples as this many numbers are worth, within the bounds below.
_RESAMPLED_NUMBERS = 10**9
_RESAMPLES = (100, 1000)
_NUMBERS_AT_ONCE = 2**22
_NO_CLASS = "no class"


@dataclass(frozen=True)
class LabelScore:
    """Scores of one class; None where undefined: no picture has it, or it is never predicted.

    Attributes:
        average_precision: area under the curve of precision by recall, as steps.
        precision: share of the pictures predicted as the class that have it.
        recall: share of the pictures with the class that are predicted as it.
        f1: their harmonic mean; None where neither a picture has it nor is it predicted.
        support: pictures that have the class.
        interval: 95% interval of the average precision.
    """

    name: str
    average_precision: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class LabelsEvaluation:
    """All metrics of one classifier that gives a picture any number of classes.

    Attributes:
        classes: K names, in the order of the class ids.
        pictures: number of judged pictures.
        threshold: least probability of a predicted class.
        mean_ap: mean average precision, over the classes that a picture has.
        f1_micro: F1 over all pictures and classes together.
        f1_macro: mean of the classes' F1, where it is defined.
        subset_accuracy: fraction of the pictures whose predicted classes are exactly theirs.
        loss: binary cross-entropy in nats, the mean over pictures and classes.
        intervals: 95% intervals of these five.
        per_class: in the order of the classes.
        labels_per_picture: mean number of classes of a picture.
        resamples: of the bootstrap.
    """

    classes: tuple[str, ...]
    pictures: int
    threshold: float
    mean_ap: float
    f1_micro: float
    f1_macro: float
    subset_accuracy: float
    loss: float
    intervals: dict[str, tuple[float, float]]
    per_class: tuple[LabelScore, ...]
    labels_per_picture: float
    resamples: int


def evaluate_labels(classes: Sequence[str], scores: LabelScores, threshold: float) -> LabelsEvaluation:
    """Computes all metrics of one classifier that gives a picture any number of classes.

    Average precision is that of scikit-learn: the sum of precisions at the distinct probabilities, weighted by the
    steps of recall, without interpolation. A class that no picture has counts in no mean; scikit-learn counts it as 0.

    The intervals are those of the bootstrap (Efron 1979): pictures are resampled with replacement, each with all its
    classes, 1,000 times or, for more than a million numbers (pictures x classes), less often, at least 100 times. That
    of the subset accuracy is exact, as in `library.evaluation.metrics.evaluate`.

    Args:
        classes: K names, in the order of the class ids.
        scores: of at least one judged picture that has one of the classes.
        threshold: least probability of a predicted class, 0 to 1.
    """
    truth, probabilities = scores.arrays(len(classes))
    pictures = len(truth)
    outcomes = _Outcomes.of(truth, probabilities, threshold)
    once = outcomes.resampled(np.ones((1, pictures), np.float32))
    few, many = _RESAMPLES
    resamples = min(many, max(few, _RESAMPLED_NUMBERS // truth.size))
    parts = [outcomes.resampled(weights) for weights in _weights(pictures, resamples)]
    drawn = _Metrics(*(np.concatenate(values) for values in zip(*(part.values for part in parts), strict=True)))
    precision, recall, f1 = outcomes.class_scores(once)
    exact = int(outcomes.exact.sum())
    means = once.means
    return LabelsEvaluation(
        classes=tuple(classes),
        pictures=pictures,
        threshold=threshold,
        **{name: float(values[0]) for name, values in means.items()},
        subset_accuracy=exact / pictures,
        intervals={
            **{name: _interval(values) for name, values in drawn.means.items()},
            "subset_accuracy": share_interval(exact, pictures),
        },
        per_class=tuple(
            LabelScore(
                name,
                _defined(once.average_precision[0, number]),
                _defined(precision[number]),
                _defined(recall[number]),
                _defined(f1[number]),
                int(truth[:, number].sum()),
                _interval(drawn.average_precision[:, number]) if truth[:, number].any() else None,
            )
            for number, name in enumerate(classes)
        ),
        labels_per_picture=float(truth.sum() / pictures),
        resamples=resamples,
    )


def label_mistakes(
    classes: Sequence[str],
    keys: Sequence[str],
    truth: NDArray[np.bool_],
    probabilities: NDArray[np.float32],
    threshold: float,
) -> Iterator[Mistake]:
    """Yields the pictures whose predicted classes are not exactly theirs.

    The confidence is that of the surest error: the probability of a class that the picture lacks, or 1 minus that of
    one that it has.

    Args:
        classes: K names.
        keys: of the N pictures.
        truth: N x K, which classes each picture has.
        probabilities: N x K.
        threshold: least probability of a predicted class.
    """
    predicted = probabilities >= threshold
    wrong = predicted != truth
    errors = np.where(wrong, np.where(predicted, probabilities, 1 - probabilities), 0).max(1, initial=0)
    for row in np.flatnonzero(wrong.any(1)).tolist():
        labels, given = (
            ", ".join(classes[number] for number in np.flatnonzero(one[row]).tolist()) or _NO_CLASS
            for one in (truth, predicted)
        )
        yield Mistake(keys[row], labels, given, float(errors[row]))


@dataclass(frozen=True)
class _Metrics:
    """Metrics of R resamples; NaN where undefined.

    Attributes:
        average_precision: R x K.
        f1: R x K.
        f1_micro: R.
        loss: R.
    """

    average_precision: NDArray[np.float64]
    f1: NDArray[np.float64]
    f1_micro: NDArray[np.float64]
    loss: NDArray[np.float64]

    @property
    def values(self) -> tuple[NDArray[np.float64], ...]:
        """The fields in order."""
        return self.average_precision, self.f1, self.f1_micro, self.loss

    @property
    def means(self) -> dict[str, NDArray[np.float64]]:
        """The metrics that are one number for each resample."""
        return {
            "mean_ap": _mean_of_defined(self.average_precision),
            "f1_micro": self.f1_micro,
            "f1_macro": _mean_of_defined(self.f1),
            "loss": self.loss,
        }


@dataclass(frozen=True)
class _Outcomes:
    """The outcomes of N pictures, as resampling needs them.

    Attributes:
        truth: N x K, 1 for a class that the picture has, else 0.
        predicted: N x K, likewise.
        exact: N, whether both are equal.
        losses: N, mean over the classes.
        order: K x N, for each class the pictures from the most probable one.
        ends: for each class the places in that order at which a run of equal probabilities ends.
    """

    truth: NDArray[np.float32]
    predicted: NDArray[np.float32]
    exact: NDArray[np.bool_]
    losses: NDArray[np.float64]
    order: NDArray[np.int32]
    ends: Sequence[NDArray[np.int64]]

    @classmethod
    def of(cls, truth: NDArray[np.bool_], probabilities: NDArray[np.float32], threshold: float) -> _Outcomes:
        predicted = probabilities >= threshold
        smallest = np.finfo(np.float32).tiny
        of_truth = np.where(truth, probabilities, 1 - probabilities).astype(np.float64)
        order = np.argsort(-probabilities.T, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities.T, order, axis=1)
        last = np.ones((len(ranked), 1), np.bool_)
        is_end = np.concatenate([ranked[:, 1:] != ranked[:, :-1], last], axis=1)
        return cls(
            # Counts of pictures, which float32 adds up exactly to 16 million.
            truth.astype(np.float32),
            predicted.astype(np.float32),
            (predicted == truth).all(1),
            -np.log(np.maximum(of_truth, smallest)).mean(1),
            order.astype(np.int32),
            [np.flatnonzero(one) for one in is_end],
        )

    def class_scores(self, once: _Metrics) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Returns precision, recall and F1 of each class; NaN where undefined."""
        hits = (self.truth * self.predicted).sum(0)
        return _ratio(hits, self.predicted.sum(0)), _ratio(hits, self.truth.sum(0)), once.f1[0]

    def resampled(self, weights: NDArray[np.float32]) -> _Metrics:
        """Returns the metrics where each picture counts as often as `weights` (R x N) say."""
        hits = weights @ (self.truth * self.predicted)
        both = weights @ (self.truth + self.predicted)
        ranked = [self._average_precision(number, weights) for number in range(self.truth.shape[1])]
        return _Metrics(
            np.stack(ranked, axis=1),
            _ratio(2 * hits, both),
            _ratio(2 * hits.sum(1), both.sum(1)),
            weights @ self.losses / weights.sum(1),
        )

    def _average_precision(self, number: int, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        order, ends = self.order[number], self.ends[number]
        ranked = weights[:, order]
        judged = ranked.cumsum(1)[:, ends].astype(np.float64)
        hits = (ranked * self.truth[order, number]).cumsum(1)[:, ends].astype(np.float64)
        gained = np.diff(hits, axis=1, prepend=0.0)
        # Where a resample has drawn none of the first pictures, nothing is gained.
        summed = (gained * np.divide(hits, judged, out=np.zeros_like(hits), where=judged > 0)).sum(1)
        return _ratio(summed, hits[:, -1])


def _weights(pictures: int, resamples: int) -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    at_once = max(1, _NUMBERS_AT_ONCE // pictures)
    for first in range(0, resamples, at_once):
        yield np.stack(
            [
                np.bincount(rng.integers(0, pictures, pictures), minlength=pictures).astype(np.float32)
                for _ in range(min(at_once, resamples - first))
            ]
        )


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> NDArray[np.float64]:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0, dtype=np.float64)


def _mean_of_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean of the finite values of each row; NaN where there is none."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0).sum(1), defined.sum(1).astype(np.float64))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    low, high = np.quantile(defined, QUANTILES) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
