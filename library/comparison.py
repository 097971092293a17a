"""Two classifiers on the same pictures: which is better, and whether that may be chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from scipy import stats

from library.evaluation import Outcomes, bootstrap_intervals

_FEW_DISCORDANT = 25


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same pictures, with McNemar's test.

    Attributes:
        both: pictures that both have right.
        only_first: that only the first has right.
        only_second: that only the second has right.
        neither: that none has right.
        difference: top-1 of the second less that of the first.
        interval: 95% bootstrap interval of the difference.
        p_value: of so uneven a split of what only one has right, were both equally good.
        method: `exact` (binomial) below 25 such pictures, else `chi2` (with continuity correction).
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    method: Literal["exact", "chi2"]


def compare(first: Outcomes, second: Outcomes, *, seed: int = 0) -> Comparison | None:
    """Two classifiers on the pictures that both have judged; None where there are none.

    Pictures are matched by key. McNemar 1947, with Edwards' continuity correction.
    """
    at = {key: row for row, key in enumerate(second.keys)}
    rows = [(row, at[key]) for row, key in enumerate(first.keys) if key in at]
    if not rows:
        return None
    mine, other = np.asarray(rows).T
    a, b = first.correct[mine], second.correct[other]
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    p_value, method = mcnemar(only_first, only_second)
    gained = b.astype(np.float64) - a
    (interval,) = bootstrap_intervals(gained[None], seed=seed)
    return Comparison(
        both=int((a & b).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~a & ~b).sum()),
        difference=float(gained.mean()),
        interval=interval,
        p_value=p_value,
        method=method,
    )


def mcnemar(only_first: int, only_second: int) -> tuple[float, Literal["exact", "chi2"]]:
    """Two-sided p-value of McNemar's test, and how it was found.

    Args:
        only_first: pictures that only the first classifier has right.
        only_second: pictures that only the second has right.
    """
    discordant = only_first + only_second
    if discordant < _FEW_DISCORDANT:
        test: Any = stats.binomtest(only_first, discordant) if discordant else None
        return (float(test.pvalue) if test else 1.0), "exact"
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / discordant
    return float(cast(Any, stats.chi2).sf(statistic, 1)), "chi2"
