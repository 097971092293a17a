"""Measures how often a filter search claims a filter that does nothing, and how often it finds one that helps.

Trainings are simulated by an item response model (Rasch 1960): the log-odds of a right answer are the ease of a
picture, plus the effect of a candidate, which differs from picture to picture, plus that of a training on all
pictures. The race and the decision are those of `striate search`: the race on some pictures, the decision on others,
with other seeds. With gain 0 all candidates do nothing on average; with another gain one candidate, drawn at random,
has it. A bound is broken where a finalist's true gain is above what the answer says it is at most. Real searches:
search_false_claims.py.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from benchmarks.common.command_line import add_cores, at_least, make_parser, run_benchmark, say
from benchmarks.common.report import print_table
from library.choosing.filter_search.answer import SEEDS, judge
from library.choosing.filter_search.race import FINALISTS, Race, finalists_of
from library.choosing.filter_search.space import Candidate, Space

#: In log-odds: the mean ease of pictures and its standard deviation (accuracy 0.9), and the standard deviations of a
#: training and of a candidate's effect from picture to picture.
_EASE, _EASE_SPREAD, _TRAINING, _EFFECT = 5.5, 4.0, 0.15, 0.7


def main() -> int:
    """Returns the exit code."""
    parser = make_parser(__file__, __doc__, "", "--searches 200 --pictures 200 --out /tmp/results")
    add_cores(parser)
    parser.add_argument("--searches", type=at_least(10), default=1000, help="simulated searches for each gain (1,000)")
    parser.add_argument(
        "--pictures", type=at_least(20), default=1000, help="of each half of the validation set (1,000)"
    )
    parser.add_argument("--gains", type=float, nargs="+", default=[0, 0.5, 1, 2, 5], help="points (0 0.5 1 2 5)")
    return run_benchmark(__file__, parser, _measure, _print)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for gain in options.gains:
        one = partial(_search, gain / 100, options.pictures)
        with ProcessPoolExecutor(options.cores) as pool:
            outcomes = Counter(chain(*pool.map(one, range(options.searches), chunksize=5)))
        rows.append({"gain_points": gain, **{name: _share(outcomes[name], options.searches) for name in _OUTCOMES}})
        say(f"gain {gain}: {dict(outcomes)}")
    settings = {"ease": _EASE, "ease_spread": _EASE_SPREAD, "training": _TRAINING, "effect": _EFFECT}
    return {
        "parameters": {"searches": options.searches, "pictures": options.pictures, **settings},
        "candidates": len(Space.default().singles()),
        "seeds": SEEDS,
        "rows": rows,
    }


#: `right`: the helpful candidate wins. `wrong`: another one wins. `placebo`: a placebo comes out as helping.
#: `bound broken` comes with any of them.
_OUTCOMES = ("right", "wrong", "placebo", "none", "undecided", "bound broken")


def _share(count: int, searches: int) -> dict[str, float]:
    interval = cast(Any, stats.binomtest(count, searches)).proportion_ci(method="wilson")
    return {"share": count / searches, "low": round(float(interval.low), 4), "high": round(float(interval.high), 4)}


def _search(gain: float, pictures: int, number: int) -> list[str]:
    """Returns the outcome of one simulated search, and whether its bound was broken."""
    rng = np.random.default_rng([number, round(gain * 1e6)])
    singles = Space.default().singles()
    helpful = singles[int(rng.integers(len(singles) - 3))] if gain else None

    def trainings(effect: NDArray[np.float64], ease: NDArray[np.float64], seeds: int) -> NDArray[np.bool_]:
        shift = _TRAINING * rng.standard_normal((seeds, 1))
        return rng.random((seeds, len(ease))) < expit(ease + effect + shift)

    def effect(candidate: Candidate) -> NDArray[np.float64]:
        if candidate.placebo is not None:
            return np.zeros(pictures)
        # Effects of both signs make a model a little worse on average; that is corrected, so that the gain is exact.
        return _EFFECT * rng.standard_normal(pictures) + _log_odds(gain if candidate == helpful else 0.0)

    screening, confirmation = (_EASE + _EASE_SPREAD * rng.standard_normal(pictures) for _ in range(2))
    race = Race(tuple(singles))
    most = race.rounds[-1].seeds
    identity = trainings(np.zeros(pictures), screening, most).mean(1)
    accuracies = {one: trainings(effect(one), screening, most).mean(1) for one in singles}
    while not race.finished:
        for one, seed in race.missing():
            race.record(one, seed, float(accuracies[one][seed] - identity[seed]))
        race.advance()
    finalists = finalists_of(race.survivors, [one for one in singles if one.placebo is not None], FINALISTS)
    answer = judge(
        trainings(np.zeros(pictures), confirmation, SEEDS),
        {one: trainings(effect(one), confirmation, SEEDS) for one in finalists},
    )
    real = [each for each in answer.gains if each.candidate.placebo is None]
    bound = max((each.bound for each in real), default=0.0)
    broken = any(bound < (gain if each.candidate == helpful else 0.0) for each in real)
    outcome: str = answer.outcome
    if answer.placebo_won:
        outcome = "placebo"
    elif outcome == "helps":
        outcome = "right" if answer.winner == helpful else "wrong"
    return [outcome, *(["bound broken"] if broken else [])]


@cache
def _log_odds(gain: float) -> float:
    """Returns the effect in log-odds that adds `gain` to the accuracy of a candidate, whose own effects count."""
    draws = np.random.default_rng(0).standard_normal((2, 200_000))
    ease, own = _EASE + _EASE_SPREAD * draws[0], _EFFECT * draws[1]
    wanted = float(expit(ease).mean()) + gain
    low, high = -10.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float(expit(ease + own + middle).mean()) < wanted else (low, middle)
    return low


def _print(result: Mapping[str, Any]) -> None:
    def text(entry: Mapping[str, float]) -> str:
        return f"{entry['share']:.1%} ({entry['low']:.1%} to {entry['high']:.1%})"

    rows = [[f"{row['gain_points']:g}", *(text(row[name]) for name in _OUTCOMES)] for row in result["rows"]]
    print_table("outcome of a search by the gain of one candidate, with 95% intervals", ["points", *_OUTCOMES], rows)


if __name__ == "__main__":
    raise SystemExit(main())
