"""Paired differences: sign-flip test, Student's interval, intervals of a bootstrap, equivalence, Holm's correction.

Two ways to train are compared on the same seeds, so each seed gives one difference. `compare_pairs` is for repetitions
that are independent of one another: their mean gets surer with their number. `compare_replicates` is for replicates of
a bootstrap: the spread of those already is the uncertainty of the mean, which more of them do not make smaller.
With so few numbers the sign-flip test is exact, and its smallest possible p-value is known: 5 seeds cannot give less
than 0.0625.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Verdict: TypeAlias = Literal["better", "worse", "equivalent", "undecided"]

#: Up to so many differences every combination of signs is tried; with more, `_DRAWS` random ones.
MOST_EXACT = 16
_DRAWS = 99_999
_CHUNK = 2**14
#: Sums of floats in another order differ in the last bits; so close sums count as equal.
_RELATIVE = 1e-9
ALPHA = 0.05


@dataclass(frozen=True)
class PairedDifference:
    """The differences of repetitions or replicates, and what they say about their mean.

    Attributes:
        differences: one for each repetition, in the unit of the measured value.
        mean: of the differences.
        interval: 95% interval of the mean; both ends infinite for a single repetition.
        p_value: two-sided; of the sign-flip test for repetitions, of a t-test for replicates.
        smallest_p: the smallest p-value that so many repetitions can give; 0 for replicates.
        adjusted_p: `p_value` after Holm's correction for the other comparisons made; `p_value` if it is the only one.
        margin: differences up to this size do not matter; None where no margin was given.
    """

    differences: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    p_value: float
    smallest_p: float
    adjusted_p: float
    margin: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What can be said at the 5% level.

        `equivalent` if the whole interval lies within the margin, even for a difference that is no chance.
        """
        if self.margin is not None and -self.margin < self.interval[0] and self.interval[1] < self.margin:
            return "equivalent"
        if self.adjusted_p < ALPHA:
            return "better" if self.mean > 0 else "worse"
        return "undecided"


def compare_pairs(
    first: Sequence[float], second: Sequence[float], *, margin: float | None = None, seed: int = 0
) -> PairedDifference:
    """Compares two ways to do something that were repeated with the same seeds.

    Args:
        first: the measured value of the first way, one for each repetition.
        second: of the second way; the differences are `second - first`.
        margin: differences up to this size do not matter; None for no test of equivalence.
        seed: of the random signs, where there are too many repetitions to try all.

    Raises:
        ValueError: no repetition, unequal numbers of them, or a margin that is not positive.
    """
    values = _differences(first, second, margin)
    p_value = sign_flip(values, seed=seed)
    return PairedDifference(
        differences=tuple(values.tolist()),
        mean=float(values.mean()),
        interval=mean_interval(values),
        p_value=p_value,
        smallest_p=smallest_p(len(values)),
        adjusted_p=p_value,
        margin=margin,
    )


def compare_replicates(
    first: Sequence[float], second: Sequence[float], *, margin: float | None = None
) -> PairedDifference:
    """Compares two ways to do something that were measured on the same replicates of a bootstrap.

    The replicates spread about the measured difference as that does about the true one. So their standard deviation is
    the standard error, and only the error of their own mean gets smaller with their number n: the difference is
    judged by Student's t with the standard error `SD * sqrt(1 + 1/n)`.

    Args:
        first: the measured value of the first way, one for each replicate.
        second: of the second way, on the same replicates; the differences are `second - first`.
        margin: differences up to this size do not matter; None for no test of equivalence.

    Raises:
        ValueError: no replicate, unequal numbers of them, or a margin that is not positive.
    """
    values = _differences(first, second, margin)
    mean = float(values.mean())
    error = math.inf if len(values) < 2 else float(values.std(ddof=1)) * math.sqrt(1 + 1 / len(values))
    p_value = _student_p(mean, error, len(values) - 1)
    return PairedDifference(
        differences=tuple(values.tolist()),
        mean=mean,
        interval=_student_interval(mean, error, len(values) - 1, 0.95),
        p_value=p_value,
        smallest_p=0.0,
        adjusted_p=p_value,
        margin=margin,
    )


def _differences(first: Sequence[float], second: Sequence[float], margin: float | None) -> NDArray[np.float64]:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} repetitions cannot be paired")
    if margin is not None and not margin > 0:
        raise ValueError(f"a margin of {margin} is not positive")
    return np.asarray(second, np.float64) - np.asarray(first, np.float64)


def sign_flip(differences: Sequence[float] | NDArray[np.float64], *, seed: int = 0) -> float:
    """Returns the two-sided p-value of the sign-flip permutation test (Fisher 1935) of the mean difference.

    If both ways were equally good, each difference could as well have had the other sign. The p-value is the share of
    all combinations of signs whose mean is at least as far from zero. Exact for at most 16 differences; with more it
    is estimated from 99,999 random combinations, and the observed one counts as one of them (Phipson and Smyth 2010).
    """
    values = np.asarray(differences, np.float64)
    limit = abs(values.sum()) - _RELATIVE * np.abs(values).sum()
    if len(values) > MOST_EXACT:
        rng = np.random.default_rng(seed)
        chunks = range(0, _DRAWS, _CHUNK)
        extreme = sum(
            _extreme(rng.random((min(_CHUNK, _DRAWS - at), len(values))) < 0.5, values, limit) for at in chunks
        )
        return (extreme + 1) / (_DRAWS + 1)
    # The first sign stays: flipping all signs gives the same distance from zero.
    total = 2 ** (len(values) - 1)
    bits = np.arange(total)[:, None] >> np.arange(len(values)) & 1
    return _extreme(bits.astype(bool), values, limit) / total


def _extreme(flipped: NDArray[np.bool_], values: NDArray[np.float64], limit: float) -> int:
    sums = np.where(flipped, -values, values).sum(1)
    return int((np.abs(sums) >= limit).sum())


def smallest_p(repetitions: int) -> float:
    """Returns the smallest p-value of `sign_flip` for so many repetitions: all differences have one sign."""
    return 2.0 ** (1 - repetitions) if repetitions <= MOST_EXACT else 1 / (_DRAWS + 1)


def mean_interval(differences: Sequence[float] | NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Returns Student's interval of the mean; infinite for a single difference, which says nothing about its spread."""
    values = np.asarray(differences, np.float64)
    error = math.inf if len(values) < 2 else float(values.std(ddof=1)) / math.sqrt(len(values))
    return _student_interval(float(values.mean()), error, len(values) - 1, confidence)


def _student_interval(mean: float, error: float, freedom: int, confidence: float) -> tuple[float, float]:
    if freedom < 1:
        return -math.inf, math.inf
    half = error * float(cast(Any, stats.t).ppf((1 + confidence) / 2, freedom))
    return mean - half, mean + half


def _student_p(mean: float, error: float, freedom: int) -> float:
    """Returns the two-sided p-value of a mean with this standard error."""
    if freedom < 1 or not error:
        return 1.0 if freedom < 1 or not mean else 0.0
    return 2 * float(cast(Any, stats.t).sf(abs(mean) / error, freedom))


def corrected(comparisons: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Returns the comparisons with `adjusted_p` corrected for all of them."""
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [replace(one, adjusted_p=p_value) for one, p_value in zip(comparisons, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number (Holm 1979), in the same order; never below the given ones."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
