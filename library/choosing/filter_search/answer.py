"""Decides which finalists of a filter search help, with intervals over seeds and pictures, and says so in a sentence.

A finalist and the identity are trained by the real recipe with the same fresh seeds, and judged on the confirmation
half of the validation pictures, which the race has not seen. Two kinds of chance remain. Other seeds would give other
networks, and other pictures would be easier or harder. A gain must hold for both:

- the sign-flip test over seeds (Fisher 1935), exact up to 16 seeds, else with 99,999 random flips;
- a t-test whose standard error counts the spread over seeds and over pictures, which are crossed: the variance of the
  mean is that of the means of seeds, plus that of the means of pictures, less that of their interaction, which is in
  both (Cornfield and Tukey 1956); never less than either. Degrees of freedom as by Satterthwaite 1946;
- what n pictures may not have shown: a kind of picture whose share is q is absent from all of them with the probability
  (1 - q)^n (the rule of three: Hanley and Lippman-Hand 1983). So no interval is narrower than this allows, even where
  all trainings agree on all pictures, and a gain worth fewer than four pictures is never certain.

The largest p-value counts, corrected for all finalists (Holm 1979), placebos among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from library.choosing.filter_search.space import Candidate
from library.evaluation.paired_tests import ALPHA, Verdict, holm, sign_flip

#: Fewest paired seeds of a confirmation.
FEWEST_SEEDS = 8
#: Paired seeds by default: with four finalists one seed may disagree, and the corrected p-value can still be small.
SEEDS = 10
#: Differences up to this fraction do not matter, if nothing else is asked for.
MARGIN = 0.003

Outcome: TypeAlias = Literal["helps", "none", "undecided"]


@dataclass(frozen=True)
class Gain:
    """What a candidate adds to the accuracy of the identity.

    Attributes:
        candidate: the candidate.
        accuracy: mean over seeds and pictures, 0 to 1.
        identity: the identity's accuracy on the same seeds and pictures.
        mean: `accuracy - identity`.
        by_seed: the difference at each seed.
        interval: 95% interval of the mean, over seeds and pictures.
        bound: upper end of the 95% intervals that hold for all finalists together (Bonferroni).
        p_value: the largest of the three; two-sided.
        adjusted_p: corrected for all finalists.
        margin: differences up to this fraction do not matter.
        filter_ms: time of the filters for one picture, in milliseconds on one core, as in `UnitResult`.
    """

    candidate: Candidate
    accuracy: float
    identity: float
    mean: float
    by_seed: tuple[float, ...]
    interval: tuple[float, float]
    bound: float
    p_value: float
    adjusted_p: float
    margin: float
    filter_ms: float

    @property
    def verdict(self) -> Verdict:
        """`equivalent` if the whole interval is within the margin; `better` or `worse` at the 5% level."""
        if -self.margin < self.interval[0] and self.interval[1] < self.margin:
            return "equivalent"
        if self.adjusted_p < ALPHA:
            return "better" if self.mean > 0 else "worse"
        return "undecided"

    @property
    def text(self) -> str:
        """The gain in percentage points, its interval and p-value."""
        low, high = self.interval
        return (
            f"{format_points(self.mean)} points ({format_points(low)} to {format_points(high)}, "
            f"corrected p {format_p(self.adjusted_p)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the gain as plain data; all shares as fractions."""
        return {
            "candidate": self.candidate.to_json(),
            "accuracy": self.accuracy,
            "identity": self.identity,
            "gain": self.mean,
            "by_seed": list(self.by_seed),
            "interval": list(self.interval),
            "bound": self.bound,
            "p_value": self.p_value,
            "adjusted_p": self.adjusted_p,
            "verdict": self.verdict,
            "margin": self.margin,
            "filter_ms": self.filter_ms,
        }


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        outcome: whether a filter helps, none does, or the numbers cannot tell.
        sentence: the outcome with its numbers.
        winner: the candidate that helps most, its cost counted; None where none helps.
        gains: of all finalists, the best first.
    """

    outcome: Outcome
    sentence: str
    winner: Candidate | None
    gains: tuple[Gain, ...]

    @property
    def placebo_won(self) -> bool:
        """Whether a placebo came out as helping, which can only be chance."""
        return any(gain.candidate.placebo is not None and gain.verdict == "better" for gain in self.gains)


def gain_of(
    candidate: Candidate,
    correct: NDArray[np.bool_],
    identity: NDArray[np.bool_],
    *,
    filter_ms: float = 0.0,
    margin: float = MARGIN,
    comparisons: int = 1,
) -> Gain:
    """Compares a candidate with the identity; `adjusted_p` is not yet corrected.

    Args:
        candidate: the candidate.
        correct: seeds x pictures, which pictures it got right.
        identity: the same of the identity, with the same seeds and pictures.
        filter_ms: time of its filters.
        margin: differences up to this fraction do not matter.
        comparisons: number of finalists, for `bound`.

    Raises:
        ValueError: fewer than two seeds or pictures, or different shapes.
    """
    if correct.shape != identity.shape or correct.ndim != 2 or min(correct.shape) < 2:
        raise ValueError(f"{correct.shape} and {identity.shape} are not the same seeds x pictures, two of each or more")
    differences = correct.astype(np.float64) - identity
    by_seed = differences.mean(1)
    mean = float(differences.mean())
    error, freedom = _error(differences)
    quantile = cast(Any, stats.t)
    pictures = differences.shape[1]

    def half_width(tail: float) -> float:
        return max(error * float(quantile.ppf(1 - tail, freedom)), _unseen(tail, pictures))

    half, bound = half_width(ALPHA / 2), mean + half_width(ALPHA / 2 / comparisons)
    p_value = max(sign_flip(by_seed), min(1.0, 2 * (1 - abs(mean)) ** pictures))
    if error:
        p_value = max(p_value, 2 * float(quantile.sf(abs(mean) / error, freedom)))
    return Gain(
        candidate=candidate,
        accuracy=float(correct.mean()),
        identity=float(identity.mean()),
        mean=mean,
        by_seed=tuple(by_seed.tolist()),
        interval=(mean - half, mean + half),
        bound=bound,
        p_value=p_value,
        adjusted_p=p_value,
        margin=margin,
        filter_ms=filter_ms,
    )


def _unseen(probability: float, pictures: int) -> float:
    """Returns the share of a kind of picture that is absent from so many pictures with this probability."""
    return 1 - probability ** (1 / pictures)


def _error(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the standard error of the mean of seeds x pictures, and its degrees of freedom."""
    by_seed, by_picture = differences.mean(1), differences.mean(0)
    seeds, pictures = ((float(values.var(ddof=1)) / len(values), len(values) - 1) for values in (by_seed, by_picture))
    rest = differences - by_seed[:, None] - by_picture + differences.mean()
    interaction = float((rest**2).sum()) / (seeds[1] * pictures[1]) / differences.size
    total = max(seeds[0] + pictures[0] - interaction, seeds[0], pictures[0])
    # Differences that are all equal have no spread but rounding errors.
    if total < 1e-24:
        return 0.0, 1.0
    return math.sqrt(total), max(1.0, total**2 / sum(part**2 / freedom for part, freedom in (seeds, pictures)))


def judge(
    identity: NDArray[np.bool_],
    finalists: Mapping[Candidate, NDArray[np.bool_]],
    *,
    filter_ms: Mapping[Candidate, float] | None = None,
    margin: float = MARGIN,
    cost_weight: float = 0.0,
    all_tried: bool = True,
) -> Answer:
    """Judges all finalists together.

    Args:
        identity: seeds x pictures, which pictures the identity got right.
        finalists: the same for each finalist.
        filter_ms: time of each finalist's filters for a picture, in milliseconds.
        margin: differences up to this fraction do not matter.
        cost_weight: percentage points of accuracy that a millisecond a picture is worth. It decides which of several
            filters that help is the winner, and a filter whose gain is less than its cost does not win.
        all_tried: whether there was time to race all candidates and to confirm all finalists. If not, the outcome may
            be that a filter helps, but not that none does.

    With fewer than eight seeds the outcome is always undecided.
    """
    times = filter_ms or {}
    gains = [
        gain_of(
            one,
            correct,
            identity,
            filter_ms=times.get(one, 0.0),
            margin=margin,
            comparisons=max(1, sum(each.placebo is None for each in finalists)),
        )
        for one, correct in finalists.items()
    ]
    adjusted = holm([gain.p_value for gain in gains])
    gains = [replace(gain, adjusted_p=p_value) for gain, p_value in zip(gains, adjusted, strict=True)]
    ordered = tuple(sorted(gains, key=lambda gain: -gain.mean))

    def worth(gain: Gain) -> float:
        return gain.mean - cost_weight / 100 * gain.filter_ms

    real = [gain for gain in ordered if gain.candidate.placebo is None]
    if not real:
        return Answer("undecided", "undecided: no filter could be confirmed", None, ordered)
    if len(identity) < FEWEST_SEEDS:
        few = f"undecided: {len(identity)} paired seeds instead of at least {FEWEST_SEEDS}"
        return Answer("undecided", f"{few}; so far {real[0].candidate.label} gains {real[0].text}", None, ordered)
    helping = [gain for gain in real if gain.verdict == "better"]
    winners = sorted((gain for gain in helping if worth(gain) > 0), key=lambda gain: -worth(gain))
    if winners:
        best = winners[0]
        more = len(winners) - 1
        others = f"; {more} more finalist{'s help' if more > 1 else ' helps'}" if more else ""
        return Answer("helps", f"{best.candidate.label} helps: {best.text}{others}", best.candidate, ordered)
    if helping:
        best = max(helping, key=worth)
        points = f"{cost_weight * best.filter_ms:.3g} points"
        counted = f"--cost-weight {cost_weight:g} counts as {points}"
        cost = f"its filters take {best.filter_ms:.3g} ms a picture, which {counted}"
        sentence = f"{best.candidate.label} gains {best.text}, but {cost}"
        if not all_tried:
            sentence = f"undecided: {sentence}; there was no time for all candidates"
            return Answer("undecided", sentence, None, ordered)
        if any(gain.verdict == "undecided" for gain in real):
            return Answer("undecided", f"undecided: {sentence}; other finalists may help", None, ordered)
        return Answer("none", sentence, None, ordered)
    most = max(gain.bound for gain in real)
    if all(gain.verdict in ("equivalent", "worse") for gain in real):
        if not all_tried:
            sentence = (
                f"undecided: no finalist helps, at most {_at_most(most)}, but there was no time for all candidates"
            )
            return Answer("undecided", sentence, None, ordered)
        return Answer("none", f"no filter helps: at most {_at_most(most)}", None, ordered)
    open_ones = [gain for gain in real if gain.verdict == "undecided"]
    best = max(open_ones, key=lambda gain: gain.mean)
    sentence = f"undecided: no filter certainly helps; the best finalist, {best.candidate.label}, gains {best.text}"
    return Answer("undecided", f"{sentence}. None gains more than {_at_most(most)}", None, ordered)


def _at_most(fraction: float) -> str:
    # Rounded up: the bound must hold.
    return f"{math.ceil(max(0.0, fraction) * 1000 - 1e-9) / 10:.1f} points"


def format_points(fraction: float) -> str:
    """Returns a difference of accuracies in percentage points, without the unit."""
    return f"{100 * fraction:+.1f}"


def format_p(value: float) -> str:
    """Returns a p-value as text, in the sentence and on the page."""
    return f"{value:.3f}" if value >= 0.001 else "below 0.001"
