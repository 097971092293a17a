"""The metrics of a classifier, computed from the sums over its pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from library.evaluation.sums import CALIBRATION_BINS, UNIT, Sums

#: Bounds of the 95% intervals.
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class against all others; None where undefined (never predicted, or no pictures)."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Bin:
    """Mean confidence and accuracy of the pictures whose confidence is in (low, high]; None where there are none."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How well confidence agrees with accuracy (Guo et al. 2017, equations 2 to 5).

    Attributes:
        ece: expected calibration error, the mean of |accuracy - confidence| over bins, weighted by count; 0 to 1.
        bins: of equal width.
    """

    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class ConfusedPair:
    """Number of pictures of `label` that were predicted as `predicted`, and their share of that label."""

    label: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Evaluation:
    """All metrics of one classifier.

    Attributes:
        classes: K names, in the order of the class ids.
        pictures: number of judged pictures.
        top1: fraction whose most probable class is the true one.
        top5: fraction whose true class is among the five most probable.
        loss: mean negative log likelihood of the true class, in nats.
        intervals: 95% intervals of top1, top5 and loss.
        per_class: in the order of the classes.
        confusion: K x K counts, true class by predicted class.
    """

    classes: tuple[str, ...]
    pictures: int
    top1: float
    top5: float
    loss: float
    intervals: dict[str, tuple[float, float]]
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]
    calibration: Calibration


def evaluate(classes: Sequence[str], sums: Sums) -> Evaluation:
    """Computes all metrics of one classifier.

    The intervals are those of the bootstrap (Efron 1979), which resamples the N pictures with replacement, computed
    without resampling: the number of correct pictures follows Binomial(N, top1), whose percentiles are exact. The mean
    loss is treated as normal with its variance under resampling, which holds for many pictures; for a few pictures its
    interval is rough.

    Args:
        classes: K names, in the order of the class ids.
        sums: sums over at least one judged picture.
    """
    pictures = sums.judged
    # N times the sum of squares minus the square of the sum; integers, so that no precision is lost.
    spread = math.sqrt(pictures * sums.loss_squared - sums.loss**2) / pictures**1.5 * UNIT
    loss = sums.loss * UNIT / pictures
    low, high = (loss + spread * float(stats.norm.ppf(quantile)) for quantile in QUANTILES)
    confusion = _confusion(sums, len(classes))
    return Evaluation(
        classes=tuple(classes),
        pictures=pictures,
        top1=sums.top1 / pictures,
        top5=sums.top5 / pictures,
        loss=loss,
        intervals={
            "top1": share_interval(sums.top1, pictures),
            "top5": share_interval(sums.top5, pictures),
            "loss": (max(0.0, low), high),
        },
        per_class=_per_class(classes, confusion),
        confusion=confusion,
        calibration=_calibration(sums),
    )


def share_interval(hits: int, pictures: int) -> tuple[float, float]:
    """Returns the 95% bootstrap interval of the fraction `hits` / `pictures`, exactly."""
    low, high = stats.binom.ppf(QUANTILES, pictures, hits / pictures) / pictures
    return float(low), float(high)


def _confusion(sums: Sums, classes: int) -> NDArray[np.int64]:
    matrix = np.zeros(classes * classes, np.int64)
    matrix[list(sums.confusion)] = list(sums.confusion.values())
    return matrix.reshape(classes, classes)


def _per_class(classes: Sequence[str], confusion: NDArray[np.int64]) -> tuple[ClassScore, ...]:
    """Returns precision, recall, F1 and support (pictures of the class) of every class."""
    truth, predicted = np.nonzero(confusion)
    scores: Any = metrics.precision_recall_fscore_support(
        truth,
        predicted,
        labels=np.arange(len(classes)),
        sample_weight=confusion[truth, predicted],
        zero_division=cast(Any, np.nan),
    )
    return tuple(
        ClassScore(name, _defined(precision), _defined(recall), _defined(f1), int(support))
        for name, precision, recall, f1, support in zip(classes, *scores, strict=True)
    )


def _calibration(sums: Sums) -> Calibration:
    bins = tuple(
        Bin(
            number / CALIBRATION_BINS,
            (number + 1) / CALIBRATION_BINS,
            count,
            confidence * UNIT / count if count else None,
            correct / count if count else None,
        )
        for number, (count, correct, confidence) in enumerate(
            zip(sums.bin_counts, sums.bin_correct, sums.bin_confidence, strict=True)
        )
    )
    gap = sum(
        abs(correct - confidence * UNIT)
        for correct, confidence in zip(sums.bin_correct, sums.bin_confidence, strict=True)
    )
    return Calibration(gap / sums.judged, bins)


def confused_pairs(confusion: NDArray[np.int64], classes: Sequence[str], count: int) -> list[ConfusedPair]:
    """Returns the pairs of classes that are confused most often, most frequent first; ties in the order of classes.

    Args:
        confusion: K x K counts, true class by predicted class.
        classes: K names.
        count: largest number of pairs; fewer where there are fewer errors.
    """
    errors = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    support = confusion.sum(1)
    pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, errors.shape), strict=True)]
    return [
        ConfusedPair(classes[row], classes[column], int(errors[row, column]), float(errors[row, column] / support[row]))
        for row, column in pairs
        if errors[row, column]
    ]


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
