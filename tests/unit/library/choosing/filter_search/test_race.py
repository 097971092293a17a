"""The race of a filter search, on simulated trainings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from library.choosing.filter_search.race import ROUNDS, Race, finalists_of, moderated_intervals
from library.choosing.filter_search.space import Candidate, Space
from library.randomness import seed_of

CANDIDATES = tuple(Space.default().singles())


def run(race: Race, difference: Callable[[Candidate, int], float]) -> Race:
    while not race.finished:
        for candidate, seed in race.missing():
            race.record(candidate, seed, difference(candidate, seed))
        race.advance()
    return race


def noise(candidate: Candidate, seed: int, size: float = 0.01) -> float:
    return size * np.random.default_rng([seed_of(candidate.name), seed]).standard_normal()


def test_the_best_candidate_wins_and_gets_few_rivals() -> None:
    best = CANDIDATES[17]
    race = run(Race(CANDIDATES), lambda one, seed: noise(one, seed) + (0.08 if one == best else 0))
    assert race.survivors[0] == best
    assert "behind" in " ".join(each.dropped or "" for each in race.standings())


def test_the_best_is_rarely_dropped_by_a_bound() -> None:
    best, dropped = CANDIDATES[3], 0
    for repetition in range(40):
        race = Race(CANDIDATES[:30])
        run(race, lambda one, seed, first=1000 * repetition: noise(one, first + seed) + (0.02 if one == best else 0))
        reason = next(each.dropped for each in race.standings() if each.candidate == best)
        dropped += reason is not None and "not among" not in reason
    assert dropped <= 2


@pytest.mark.parametrize("replicates", [True, False])
def test_bounds_for_replicates_keep_the_best_where_seeds_bounds_drop_it(replicates: bool) -> None:
    """Replicates spread about a measured difference that is itself off by as much: their mean does not come closer."""
    spread, dropped, searches = 0.01, 0, 30
    rng = np.random.default_rng(5)
    for _ in range(searches):
        candidates = CANDIDATES[:20]
        measured = {one: rng.normal(0, spread) for one in candidates}  # the truth is 0 for all
        race = Race(candidates, replicates=replicates)
        run(race, lambda one, _, measured=measured: measured[one] + rng.normal(0, spread))
        # Any of them is the best one, so each that a bound drops is an error.
        dropped += any("not among" not in each.dropped for each in race.standings() if each.dropped is not None)
    assert dropped <= 4 if replicates else dropped > 10


def test_an_interval_of_replicates_never_gets_narrower_than_their_spread() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)
    seeds, replicates = (
        moderated_intervals({CANDIDATES[0]: values}, 0.95, replicates=each)[CANDIDATES[0]] for each in (False, True)
    )
    assert seeds[1] - seeds[0] == pytest.approx(2 * 1.97 / 20, rel=0.1)
    assert replicates[1] - replicates[0] == pytest.approx(2 * 1.97, rel=0.1)


def test_what_harms_is_dropped_in_the_first_round() -> None:
    harmful = set(CANDIDATES[:20])
    race = Race(CANDIDATES)
    for candidate, seed in race.missing():
        race.record(candidate, seed, noise(candidate, seed) - (0.3 if candidate in harmful else 0))
    assert harmful <= set(race.advance())
    assert "worse than the identity after 2 seeds" in (race.standings()[-1].dropped or "")


def test_no_round_keeps_more_than_it_may() -> None:
    race = Race(CANDIDATES)
    for limit in ROUNDS:
        for candidate, seed in race.missing():
            race.record(candidate, seed, noise(candidate, seed))
        race.advance()
        assert len(race.survivors) <= limit.keep
    assert race.finished
    assert race.missing() == []


def test_a_race_that_is_recorded_again_comes_to_the_same_end() -> None:
    first, again = (run(Race(CANDIDATES), noise) for _ in range(2))
    assert first.standings() == again.standings()


def test_a_candidate_that_cannot_be_trained_is_out_with_its_reason() -> None:
    race = Race(CANDIDATES[:4])
    race.fail(CANDIDATES[0], "needs 3 channels")
    run(race, noise)
    assert CANDIDATES[0] not in race.survivors
    assert {each.dropped for each in race.standings() if each.candidate == CANDIDATES[0]} == {"needs 3 channels"}


def test_a_round_with_missing_trainings_cannot_end() -> None:
    with pytest.raises(ValueError, match="still needs 8 trainings"):
        Race(CANDIDATES[:4]).advance()


def test_a_placebo_is_always_a_finalist_and_takes_no_filters_place() -> None:
    placebos = [Candidate(placebo=1), Candidate(placebo=2)]
    assert finalists_of(CANDIDATES[:7], placebos, 5) == [*CANDIDATES[:5], placebos[0]]
    assert finalists_of([placebos[1], CANDIDATES[0]], placebos, 1) == [CANDIDATES[0], placebos[1]]
    assert finalists_of(CANDIDATES[:2], [], 1) == [CANDIDATES[0]]
