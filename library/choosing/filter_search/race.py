"""The race of a filter search: cheap trainings in rounds of seeds, after each of which candidates are dropped.

Racing is Maron and Moore 1994 (Hoeffding races) and Birattari et al. 2002 (F-race): what is clearly not the best gets
no more trainings. After two seeds a candidate's own spread is nearly unknown, so it is moderated by the median spread
of all candidates (Smyth 2004, Linear models and empirical Bayes methods: a t-test with the prior's degrees of freedom
added). The error rate is shared among all rounds and candidates (Bonferroni). Seeds are independent trainings, or
replicates of a bootstrap (`Race.replicates`), which do not make a mean surer. As trainings cost time, each round also
keeps at most so many candidates, the best by their mean (successive halving: Jamieson and Talwalkar 2016).

The race only chooses what is confirmed. What helps is decided by `library.choosing.filter_search.answer`, on other
seeds and other pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from library.choosing.filter_search.space import Candidate

ALPHA = 0.05
#: Degrees of freedom that the spread of all candidates adds to a candidate's own.
_PRIOR_FREEDOM = 4
#: Differences as small as a rounding error, of accuracies.
_TINY = 1e-12


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        seeds: how many each candidate has at its end, counted from the first round.
        keep: the most candidates that stay in the race.
    """

    seeds: int
    keep: int


#: Two seeds for all; then more for fewer.
ROUNDS = (Round(2, 24), Round(4, 12), Round(8, 5))
#: The most candidates that are confirmed, without the placebo: each costs trainings, and raises what the others need.
FINALISTS = 3


@dataclass(frozen=True)
class Standing:
    """How a candidate does in the race.

    Attributes:
        candidate: the candidate.
        seeds: number of paired seeds.
        mean: mean difference of accuracy to the identity, as a fraction; NaN without seeds.
        interval: of the mean, at the level that the race drops by; wider than a 95% interval.
        dropped: why it is no longer trained, as a sentence; None while it is in the race.
    """

    candidate: Candidate
    seeds: int
    mean: float
    interval: tuple[float, float]
    dropped: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns the standing as plain data."""
        known = self.seeds > 0
        return {
            "candidate": self.candidate.to_json(),
            "seeds": self.seeds,
            "mean": self.mean if known else None,
            "interval": list(self.interval) if known and math.isfinite(self.interval[0]) else None,
            "dropped": self.dropped,
        }


@dataclass
class Race:
    """A race of candidates against the identity, and against the best of them.

    Nothing is stored: a resumed search records the same differences again and comes to the same state.

    Attributes:
        candidates: all that start; without the identity.
        rounds: first to last.
        alpha: probability that the best candidate is dropped by a bound in any round.
        first_seed: seeds are counted from it.
        replicates: whether a seed is a replicate of a bootstrap, as where a recipe freezes its backbone, and not an
            independent training.
    """

    candidates: tuple[Candidate, ...]
    rounds: tuple[Round, ...] = ROUNDS
    alpha: float = ALPHA
    first_seed: int = 0
    replicates: bool = False
    _round: int = 0
    _differences: dict[Candidate, dict[int, float]] = field(default_factory=dict[Candidate, dict[int, float]])
    _dropped: dict[Candidate, str] = field(default_factory=dict[Candidate, str])

    @property
    def survivors(self) -> list[Candidate]:
        """The candidates still in the race, the best first; in their given order before the first result."""
        left = [one for one in self.candidates if one not in self._dropped]
        return sorted(left, key=lambda one: -self._mean(one) if self._differences.get(one) else math.inf)

    @property
    def finished(self) -> bool:
        """Whether all rounds are over, or no choice is left."""
        return self._round == len(self.rounds) or len(self.survivors) < 2

    @property
    def round_number(self) -> int:
        """Number of the running round, from 1."""
        return min(self._round + 1, len(self.rounds))

    def missing(self) -> list[tuple[Candidate, int]]:
        """Returns the trainings that the running round still needs, candidate and seed; seed by seed."""
        if self.finished:
            return []
        left = [one for one in self.candidates if one not in self._dropped]
        return [(one, seed) for seed in self._seeds() for one in left if seed not in self._differences.get(one, {})]

    def record(self, candidate: Candidate, seed: int, difference: float) -> None:
        """Records a difference of accuracy (a fraction) to the identity at the same seed."""
        self._differences.setdefault(candidate, {})[seed] = difference

    def fail(self, candidate: Candidate, reason: str) -> None:
        """Takes a candidate that cannot be trained out of the race."""
        self._dropped.setdefault(candidate, reason)

    def advance(self) -> list[Candidate]:
        """Ends the running round: drops candidates, and returns them.

        Raises:
            ValueError: the round has not all its trainings yet.
        """
        if self.missing():
            raise ValueError(f"round {self.round_number} still needs {len(self.missing())} trainings")
        if self.finished:
            return []
        before = set(self._dropped)
        self._drop_by_bounds()
        kept = self.rounds[self._round].keep
        for one in self.survivors[kept:]:
            self._dropped[one] = f"not among the best {kept} after {self.rounds[self._round].seeds} seeds"
        self._round += 1
        return [one for one in self.candidates if one in self._dropped and one not in before]

    def standings(self) -> list[Standing]:
        """Returns all candidates: those in the race first, then by their mean."""
        bounds = self._intervals({one: self._values(one) for one in self.candidates if self._differences.get(one)})
        unknown = (-math.inf, math.inf)
        standings = [
            Standing(
                one,
                len(self._differences.get(one, {})),
                self._mean(one),
                bounds.get(one, unknown),
                self._dropped.get(one),
            )
            for one in self.candidates
        ]
        return sorted(standings, key=lambda each: (each.dropped is not None, -each.mean if each.seeds else math.inf))

    def _seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.rounds[self._round].seeds)

    def _values(self, candidate: Candidate) -> NDArray[np.float64]:
        recorded = self._differences.get(candidate, {})
        return np.array([recorded[seed] for seed in sorted(recorded)], np.float64)

    def _mean(self, candidate: Candidate) -> float:
        values = self._values(candidate)
        return float(values.mean()) if len(values) else math.nan

    def _drop_by_bounds(self) -> None:
        left = self.survivors
        for one, (low, high) in self._intervals({one: self._values(one) for one in left}).items():
            if high < -_TINY:
                text = f"{100 * low:+.1f} to {100 * high:+.1f} points"
                self._dropped[one] = f"worse than the identity after {self.rounds[self._round].seeds} seeds: {text}"
        left = self.survivors
        if len(left) < 2:
            return
        leader = left[0]
        behind = {one: self._values(one) - self._values(leader) for one in left[1:]}
        for one, (_, high) in self._intervals(behind).items():
            if high < -_TINY:
                text = f"at least {-100 * high:.1f} points behind {leader.label}"
                self._dropped[one] = f"not the best after {self.rounds[self._round].seeds} seeds: {text}"

    def _intervals(self, differences: Mapping[Candidate, NDArray[np.float64]]) -> dict[Candidate, tuple[float, float]]:
        tests = 2 * len(self.rounds) * max(1, len(self.candidates))
        return moderated_intervals(differences, 1 - self.alpha / tests, replicates=self.replicates)


def moderated_intervals(
    differences: Mapping[Candidate, NDArray[np.float64]], confidence: float, *, replicates: bool = False
) -> dict[Candidate, tuple[float, float]]:
    """Returns intervals of the true differences, each with its own spread moderated by the median spread of all.

    The standard error is `SD / sqrt(n)` for n independent seeds. It is `SD * sqrt(1 + 1/n)` for n replicates of a
    bootstrap, whose spread already is the uncertainty (`library.evaluation.paired_tests.compare_replicates`).

    Args:
        differences: at least one for each candidate.
        confidence: of each interval, two-sided.
        replicates: whether the differences are of replicates of a bootstrap.
    """
    spreads = [float(values.var(ddof=1)) for values in differences.values() if len(values) > 1]
    prior = float(np.median(spreads)) if spreads else math.nan
    intervals: dict[Candidate, tuple[float, float]] = {}
    for one, values in differences.items():
        own = len(values) - 1
        if not spreads:
            intervals[one] = (-math.inf, math.inf)
            continue
        spread = (_PRIOR_FREEDOM * prior + (own * float(values.var(ddof=1)) if own else 0.0)) / (_PRIOR_FREEDOM + own)
        quantile = float(cast(Any, stats.t).ppf((1 + confidence) / 2, _PRIOR_FREEDOM + own))
        half = quantile * math.sqrt(spread * (1 / len(values) + replicates))
        intervals[one] = (float(values.mean()) - half, float(values.mean()) + half)
    return intervals


def finalists_of(survivors: Sequence[Candidate], placebos: Iterable[Candidate], most: int) -> list[Candidate]:
    """Returns the candidates to confirm: the best filters that survived, and one placebo, which shows the noise.

    Args:
        survivors: of the race, the best first.
        placebos: all placebos of the space, used where none survived.
        most: most filters.
    """
    filters = [one for one in survivors if one.placebo is None][:most]
    surviving = [one for one in survivors if one.placebo is not None]
    return filters + [*surviving, *placebos][:1]
