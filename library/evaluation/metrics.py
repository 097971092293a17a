"""How good a classifier is: numbers from the sums over its pictures."""

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

#: Of the 95% intervals.
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class ClassScore:
    """One class against all others; None where there is nothing to divide by (never predicted, or no pictures)."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Bin:
    """The pictures whose confidence lies in (low, high]: their mean confidence and accuracy; None where empty."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Whether confidence says how often the classifier is right: Guo et al. 2017, equations 2 to 5.

    Attributes:
        ece: expected calibration error, the mean of |accuracy - confidence| over bins, weighted by count; 0 to 1.
        bins: of equal width.
    """

    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class ConfusedPair:
    """How many pictures of `label` were taken for `predicted`, and their share of all of that label."""

    label: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` gives.

    Attributes:
        pictures: how many.
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
    """Every number about one classifier.

    The intervals are those of the bootstrap (Efron 1979), which draws the N pictures anew with replacement, without the
    drawing: of N pictures drawn so, Binomial(N, top1) are right, and the percentiles of that are exact. The mean of the
    losses is taken for normal with the variance that it has under such draws, which sums can say and many pictures make
    true; an interval of a few pictures is rough.

    Args:
        classes: K names, in the order of the class ids.
        sums: of at least one judged picture.
    """
    pictures = sums.judged
    # Whole numbers, so that nothing cancels: N times the sum of squares less the square of the sum.
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
            "top1": _share_interval(sums.top1, pictures),
            "top5": _share_interval(sums.top5, pictures),
            "loss": (max(0.0, low), high),
        },
        per_class=_per_class(classes, confusion),
        confusion=confusion,
        calibration=_calibration(sums),
    )


def _share_interval(hits: int, pictures: int) -> tuple[float, float]:
    low, high = stats.binom.ppf(QUANTILES, pictures, hits / pictures) / pictures
    return float(low), float(high)


def _confusion(sums: Sums, classes: int) -> NDArray[np.int64]:
    matrix = np.zeros(classes * classes, np.int64)
    matrix[list(sums.confusion)] = list(sums.confusion.values())
    return matrix.reshape(classes, classes)


def _per_class(classes: Sequence[str], confusion: NDArray[np.int64]) -> tuple[ClassScore, ...]:
    """Precision, recall, F1 and support (true pictures) of every class."""
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
    """The pairs of classes that are confused most often, most first; of equals in the order of the classes."""
    off = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    support = confusion.sum(1)
    pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, off.shape), strict=True)]
    return [
        ConfusedPair(classes[row], classes[column], int(off[row, column]), float(off[row, column] / support[row]))
        for row, column in pairs
        if off[row, column]
    ]


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
