"""How good a classifier is: numbers from its probabilities and the true classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

#: `top5` looks at the five most probable classes, or at all where there are fewer.
TOP_K = 5
CALIBRATION_BINS = 15
RESAMPLES = 1000

_QUANTILES = (0.025, 0.975)
_RESAMPLED_AT_ONCE = 4_000_000  # positions; 32 MB


@dataclass(frozen=True)
class Outcomes:
    """What a classifier said of labelled pictures.

    Attributes:
        classes: K names, in the order of the probabilities.
        keys: of the N pictures.
        truth: N class ids, int64.
        probabilities: N x K, float32; each row sums to 1.
    """

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    def __post_init__(self) -> None:
        wanted = (len(self.keys), len(self.classes))
        if self.truth.shape != wanted[:1] or self.probabilities.shape != wanted:
            got = f"{self.truth.shape} class ids and probabilities {self.probabilities.shape}"
            raise ValueError(f"{wanted[0]} pictures of {wanted[1]} classes do not go with {got}")

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each picture; the first of equals, as in a Prediction."""
        return self.probabilities.argmax(1)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that is the true one."""
        return self.predicted == self.truth

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class."""
        return self.probabilities.max(1).astype(np.float64)

    def among(self, k: int) -> NDArray[np.bool_]:
        """Whether the true class is among the `k` most probable ones; of equals the first count."""
        mine = self._of_truth[:, None]
        before = np.arange(len(self.classes)) < self.truth[:, None]
        ahead = (self.probabilities > mine) | ((self.probabilities == mine) & before)
        return ahead.sum(1) < k

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """Negative log likelihood of each true class, in nats; at most 87.3, where float32 ends."""
        return -np.log(np.maximum(self._of_truth.astype(np.float64), np.finfo(np.float32).tiny))

    @property
    def _of_truth(self) -> NDArray[np.float32]:
        return self.probabilities[np.arange(len(self)), self.truth]


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
class Mistake:
    """A picture that was taken for another class; the confidence is the wrong class's probability."""

    key: str
    label: str
    predicted: str
    confidence: float


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
        intervals: 95% bootstrap intervals of top1, top5 and loss.
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


def evaluate(outcomes: Outcomes, *, seed: int = 0) -> Evaluation:
    """Every number about one classifier.

    Args:
        outcomes: of at least one picture.
        seed: of the bootstrap.
    """
    top1, top5 = outcomes.correct, outcomes.among(TOP_K)
    values = np.stack([top1, top5, outcomes.losses]).astype(np.float64)
    names = ("top1", "top5", "loss")
    return Evaluation(
        classes=outcomes.classes,
        pictures=len(outcomes),
        top1=float(top1.mean()),
        top5=float(top5.mean()),
        loss=float(outcomes.losses.mean()),
        intervals=dict(zip(names, bootstrap_intervals(values, seed=seed), strict=True)),
        per_class=per_class(outcomes),
        confusion=confusion_matrix(outcomes),
        calibration=calibration(outcomes.confidence, outcomes.correct),
    )


def per_class(outcomes: Outcomes) -> tuple[ClassScore, ...]:
    """Precision, recall, F1 and support (true pictures) of every class."""
    ids = np.arange(len(outcomes.classes))
    scores: Any = metrics.precision_recall_fscore_support(
        outcomes.truth, outcomes.predicted, labels=ids, zero_division=cast(Any, np.nan)
    )
    return tuple(
        ClassScore(name, _defined(precision), _defined(recall), _defined(f1), int(support))
        for name, precision, recall, f1, support in zip(outcomes.classes, *scores, strict=True)
    )


def confusion_matrix(outcomes: Outcomes) -> NDArray[np.int64]:
    """K x K counts: rows are true classes, columns predicted ones."""
    ids = np.arange(len(outcomes.classes))
    return np.asarray(metrics.confusion_matrix(outcomes.truth, outcomes.predicted, labels=ids), np.int64)


def calibration(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> Calibration:
    """Expected calibration error and the reliability curve.

    Args:
        confidence: N probabilities of the predicted classes.
        correct: N, whether each was the true one.
        bins: of equal width over 0 to 1, each open below and closed above.
    """
    places = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    confident = np.bincount(places, confidence, bins)
    right = np.bincount(places, correct.astype(np.float64), bins)
    made = tuple(
        Bin(
            number / bins,
            (number + 1) / bins,
            int(count),
            float(confident[number] / count) if count else None,
            float(right[number] / count) if count else None,
        )
        for number, count in enumerate(counts)
    )
    return Calibration(float(np.abs(right - confident).sum() / max(1, len(confidence))), made)


def bootstrap_intervals(
    values: NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[tuple[float, float]]:
    """95% percentile intervals of means, from drawing the pictures anew with replacement (Efron 1979).

    Args:
        values: M x N, M numbers of each of N pictures; one draw serves all M.
        seed: equal seeds give equal intervals.
        resamples: how often the N pictures are drawn.
    """
    count = values.shape[1]
    rng = np.random.default_rng(seed)
    means = np.empty((len(values), resamples))
    at_once = max(1, _RESAMPLED_AT_ONCE // count)
    for first in range(0, resamples, at_once):
        drawn = rng.integers(0, count, (min(at_once, resamples - first), count))
        for row, numbers in enumerate(values):
            means[row, first : first + len(drawn)] = numbers[drawn].mean(1)
    low, high = np.quantile(means, _QUANTILES, axis=1)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def mistakes(outcomes: Outcomes, count: int) -> list[Mistake]:
    """The most confident mistakes, most confident first; of equals by key."""
    wrong = np.flatnonzero(~outcomes.correct)
    ranked = sorted(wrong.tolist(), key=lambda row: (-outcomes.confidence[row], outcomes.keys[row]))
    return [
        Mistake(
            outcomes.keys[row],
            outcomes.classes[outcomes.truth[row]],
            outcomes.classes[outcomes.predicted[row]],
            float(outcomes.confidence[row]),
        )
        for row in ranked[:count]
    ]


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
