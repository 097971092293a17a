"""Comparison of two classifiers on the same pictures: which is better, and whether that may be chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from scipy import stats

from library.evaluation.metrics import QUANTILES
from library.evaluation.sums import Pairs

_FEW_DISCORDANT = 25
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same pictures, with McNemar's test.

    Attributes:
        both: pictures that both classify correctly.
        only_first: pictures that only the first classifies correctly.
        only_second: pictures that only the second classifies correctly.
        neither: pictures that both classify wrongly.
        difference: top-1 of the second minus top-1 of the first.
        interval: 95% bootstrap interval of the difference.
        p_value: probability of a split between `only_first` and `only_second` at least this uneven if both classifiers
            were equally good.
        method: `exact` (binomial) for fewer than 25 such pictures, else `chi2` (with continuity correction).
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    method: Literal["exact", "chi2"]


def compare(pairs: Pairs) -> Comparison | None:
    """Compares two classifiers on the pictures that both have judged; None where there are none.

    The test is McNemar's (1947) with Edwards' continuity correction. The interval is that of the bootstrap (Efron
    1979): the four counts of pictures that are resampled with replacement follow a multinomial distribution, so the
    counts are drawn instead of pictures.
    """
    counts = np.array([pairs.both, pairs.only_first, pairs.only_second, pairs.neither])
    pictures = int(counts.sum())
    if not pictures:
        return None
    drawn = np.random.default_rng(0).multinomial(pictures, counts / pictures, _RESAMPLES)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 1]) / pictures, QUANTILES)
    p_value, method = mcnemar(pairs.only_first, pairs.only_second)
    return Comparison(
        **pairs.model_dump(),
        difference=(pairs.only_second - pairs.only_first) / pictures,
        interval=(float(low), float(high)),
        p_value=p_value,
        method=method,
    )


def mcnemar(only_first: int, only_second: int) -> tuple[float, Literal["exact", "chi2"]]:
    """Returns the two-sided p-value of McNemar's test, and its method.

    Args:
        only_first: pictures that only the first classifier classifies correctly.
        only_second: pictures that only the second classifies correctly.
    """
    discordant = only_first + only_second
    if discordant < _FEW_DISCORDANT:
        test: Any = stats.binomtest(only_first, discordant) if discordant else None
        return (float(test.pvalue) if test else 1.0), "exact"
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / discordant
    return float(cast(Any, stats.chi2).sf(statistic, 1)), "chi2"
