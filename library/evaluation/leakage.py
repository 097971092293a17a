"""The effect of leaks on an evaluation: accuracy with and without the test pictures that training has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from library.evaluation.metrics import QUANTILES, evaluate
from library.evaluation.sums import Sums

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Leaks:
    """The leaked pictures of a test set.

    Attributes:
        trained_on: URIs of the training sets.
        near: the most bits in which near duplicates differ; None where only equal pictures were looked for.
        pictures: of the test set, all of them.
        leaked: those of which a training set holds a copy.
        kinds: leaked pictures by kind, the surest that applies: `exact_duplicate`, `same_pixels`, `near_duplicate`.
        labels_differ: leaked pictures whose label differs from that of the copy.
        flips: whether mirrored copies were looked for, too.
    """

    trained_on: Sequence[str]
    near: int | None
    pictures: int
    leaked: int
    kinds: Mapping[str, int]
    labels_differ: int
    flips: bool = False


@dataclass(frozen=True)
class Part:
    """The metrics of some of the pictures, with 95% intervals as in `Evaluation`."""

    pictures: int
    top1: float
    top5: float
    loss: float
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class LeakEffect:
    """One classifier with and without the leaked pictures.

    Attributes:
        without: the judged pictures that did not leak; None where all of them leaked.
        leaked: those that leaked; None where there are none.
        difference: top-1 on all judged pictures minus top-1 without the leaked ones; None where one is unknown.
        interval: its 95% bootstrap interval. It is paired: each resampled test set gives both accuracies.
    """

    without: Part | None
    leaked: Part | None
    difference: float | None
    interval: tuple[float, float] | None


def leak_effect(classes: Sequence[str], sums: Sums, leaked: Sums) -> LeakEffect:
    """Computes the effect of leaks on one classifier.

    The interval is that of the bootstrap (Efron 1979). Of a test set that is resampled with replacement, the numbers of
    leaked and other pictures that are right and wrong follow a multinomial distribution, so these four are drawn.

    Args:
        classes: names, in the order of the class ids.
        sums: of all judged pictures, at least one.
        leaked: of those that leaked.
    """
    rest = sums.without(leaked)
    if not rest.judged:
        return LeakEffect(None, _part(classes, leaked), None, None)
    difference = sums.top1 / sums.judged - rest.top1 / rest.judged
    counts = np.array([leaked.top1, leaked.judged - leaked.top1, rest.top1, rest.judged - rest.top1])
    drawn = np.random.default_rng(0).multinomial(sums.judged, counts / sums.judged, _RESAMPLES)
    others = drawn[:, 2] + drawn[:, 3]
    drawn, others = drawn[others > 0], others[others > 0]
    low, high = np.quantile((drawn[:, 0] + drawn[:, 2]) / sums.judged - drawn[:, 2] / others, QUANTILES)
    interval = (float(low), float(high)) if leaked.judged else (0.0, 0.0)
    return LeakEffect(_part(classes, rest), _part(classes, leaked), difference, interval)


def _part(classes: Sequence[str], sums: Sums) -> Part | None:
    if not sums.judged:
        return None
    whole = evaluate(classes, sums)
    return Part(whole.pictures, whole.top1, whole.top5, whole.loss, whole.intervals)
