"""The stages of a search, as a script of rounds: one training to know how long they take, the races, the confirmation.

What is decided depends on the results and on the time that is left, never on the order in which units end. Where the
time was enough, a search that was killed and resumed comes to the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jobs.progress.display import duration
from jobs.search.earlier_looks import EarlierLooks
from jobs.search.rounds import Round, Script
from library.choosing.filter_search.answer import MARGIN, SEEDS, Answer, Gain, gain_of, judge
from library.choosing.filter_search.race import FINALISTS, Race, Standing, finalists_of
from library.choosing.filter_search.space import IDENTITY, Candidate, Space
from library.choosing.filter_search.trials import Stage, Unit, UnitResult
from library.errors import StriateError

#: Shares of the budget: what the confirmation may reserve, what the races get of the rest even if it needs more, and
#: what is kept back for the test and the page, at least so many seconds of it.
_MOST_RESERVED, _LEAST_FOR_RACES, _KEPT_BACK, _KEPT_BACK_S = 0.6, 0.3, 0.04, 8.0
#: Measured trainings vary; the confirmation is expected to take this much longer.
_CAUTION = 1.2
#: Share of the longest time that is accepted for the first training, after which its whole time is estimated.
_SURE_AFTER = 0.1
#: A worker computes units of one candidate for about so long before the time is looked at again.
_BLOCK_S = 12.0
#: Filters of which pairs and triples are made: six have 30 orders of two, four have 24 of three.
_FOR_PAIRS, _FOR_TRIPLES = 6, 4


@dataclass(frozen=True)
class Settings:
    """What a search decides by.

    Attributes:
        space: of candidates.
        context: of all units.
        budget_s: seconds for everything.
        seeds: paired seeds of the confirmation.
        first_seed: of the confirmation; those of the race count from 0.
        margin: differences up to this fraction do not matter.
        cost_weight: percentage points that a millisecond a picture is worth.
        workers: trials at the same time.
        test_context: of units that are judged on the test pictures; None without a test split.
        replicates: whether the seeds of cheap trainings are replicates of a bootstrap, as in `Race`.
    """

    space: Space
    context: str
    budget_s: float
    seeds: int = SEEDS
    first_seed: int = 1000
    margin: float = MARGIN
    cost_weight: float = 0.0
    workers: int = 1
    test_context: str | None = None
    replicates: bool = False


@dataclass
class Findings:
    """What a search has found so far.

    Attributes:
        singles: standings of the race of single filters; empty before its first round.
        sequences: standings of the pairs and triples that the search has made of them.
        finalists: the candidates that are confirmed.
        best: the best so far, in words.
        candidates_left: that are in the race or confirmed.
        answer: None before the confirmation.
        test: of the winner or the best finalist, on the test split; None without one.
        filter_ms: milliseconds of each candidate's filters for a picture.
        failures: why a candidate could not be trained.
        confirmed_seeds: paired seeds that all finalists have.
        unfinished: what there was no time for, and what was left out for another reason; empty where nothing was.
        resumes: whether trainings were left out for lack of time, which another run computes.
        recipe_s: seconds of one training of the recipe.
        whole_race: whether there was time for every race.
        all_finalists: whether the budget allowed to confirm as many finalists as without a limit.
    """

    singles: list[Standing] = field(default_factory=list[Standing])
    sequences: list[Standing] = field(default_factory=list[Standing])
    finalists: list[Candidate] = field(default_factory=list[Candidate])
    best: str = ""
    candidates_left: int = 0
    answer: Answer | None = None
    test: Gain | None = None
    filter_ms: dict[Candidate, float] = field(default_factory=dict[Candidate, float])
    failures: dict[Candidate, str] = field(default_factory=dict[Candidate, str])
    confirmed_seeds: int = 0
    unfinished: list[str] = field(default_factory=list[str])
    resumes: bool = False
    recipe_s: float = 0.0
    whole_race: bool = False
    all_finalists: bool = False


class RecipeTooLong(StriateError):
    """A training of the recipe takes too much of the budget."""


@dataclass(frozen=True)
class RecipeLimit:
    """Ends the first training of a recipe as soon as it is known that no other one could follow within the budget.

    Attributes:
        budget_s: seconds for everything.
        trainings: that the confirmation of one filter needs.
        least_budget: budget that this needs, as a multiple of the time of one training.
    """

    budget_s: float
    trainings: int
    least_budget: float

    @classmethod
    def of(cls, settings: Settings) -> RecipeLimit:
        """Returns the limit for a search."""
        return cls(settings.budget_s, _trainings(settings, 1), reserved_s(settings, 1.0, 1) / _MOST_RESERVED)

    def check(self, seconds: float, done: float, before_s: float = 0.0) -> None:
        """Checks a training that runs; not in its first seconds, from which nothing can be expected.

        Args:
            seconds: that it has taken.
            done: share of it that they were for, 0 to 1.
            before_s: seconds that it took before them.

        Raises:
            RecipeTooLong: it will take more than half of the budget; says which budget would do.
        """
        limit, expected = self.budget_s / 2, before_s + seconds / max(done, 1e-9)
        if before_s + seconds < _SURE_AFTER * limit or expected <= limit:
            return
        hours, minutes = divmod(math.ceil(expected * self.least_budget / 60), 60)
        budget = f"{hours}h{minutes}m" if hours else f"{minutes}m"
        raise RecipeTooLong(
            f"one training of the recipe {'takes about' if done < 1 else 'has taken'} {duration(expected)}, and the "
            f"confirmation of one filter needs {self.trainings} of them: give --budget at least {budget}, or a "
            "recipe with fewer epochs, smaller pictures or a smaller model"
        )


_Results = Mapping[Unit, UnitResult]
_MakeUnit = Callable[[Candidate, int, Stage], Unit]


def affordable_finalists(settings: Settings, recipe_s: float) -> int:
    """Returns how many finalists, beside a placebo, the budget allows to confirm; at least one.

    Args:
        settings: budget, seeds and workers are used.
        recipe_s: seconds of one training of the recipe.
    """
    for finalists in range(FINALISTS, 1, -1):
        if reserved_s(settings, recipe_s, finalists) <= _MOST_RESERVED * settings.budget_s:
            return finalists
    return 1


def reserved_s(settings: Settings, recipe_s: float, finalists: int) -> float:
    """Returns the expected seconds of the confirmation: finalists, a placebo and the identity, all seeds."""
    return _CAUTION * recipe_s * -(-_trainings(settings, finalists) // settings.workers)


def _trainings(settings: Settings, finalists: int) -> int:
    return (finalists + 2) * settings.seeds


def search(
    settings: Settings, elapsed: Callable[[], float], found: Findings, looks: EarlierLooks | None = None
) -> Script:
    """Yields the rounds of a search, and writes into `found` what their results show.

    Args:
        settings: what it decides by.
        elapsed: returns the seconds since the start.
        found: is filled.
        looks: at the same pictures, by earlier searches; gets those of this one.

    Raises:
        StriateError: the recipe cannot be trained without any filter.
    """

    def unit(candidate: Candidate, seed: int, stage: Stage) -> Unit:
        context = settings.test_context if stage == "test" else settings.context
        return Unit(candidate, seed, stage, context or "")

    first = unit(IDENTITY, settings.first_seed, "recipe")
    results = yield Round("1 of 4: one training of the recipe, to know how long it takes", [first])
    found.recipe_s = _checked(results[first]).seconds
    most = affordable_finalists(settings, found.recipe_s)
    end = settings.budget_s - min(max(_KEPT_BACK * settings.budget_s, _KEPT_BACK_S), settings.budget_s / 2)
    now = elapsed()
    races_end = max(end - reserved_s(settings, found.recipe_s, most), now + _LEAST_FOR_RACES * (end - now))
    if most < FINALISTS:
        found.unfinished.append(
            f"a training of the recipe takes {found.recipe_s:.0f} s, so the budget allows {most} "
            f"filter{'s' * (most > 1)} among the finalists instead of {FINALISTS}"
        )

    singles = tuple(settings.space.singles())
    race = Race(singles, replicates=settings.replicates)
    whole = yield from _race("2 of 4: single filters", race, unit, races_end, found)
    found.singles = race.standings()
    survivors, parts = race.survivors, _parts(race, found)
    for length in range(2, settings.space.length + 1):
        if not whole:
            break
        composed = settings.space.compose(parts[: _FOR_PAIRS if length == 2 else _FOR_TRIPLES], length)
        # The space may list a sequence as a filter: it has raced already.
        composed = [one for one in composed if one not in singles]
        if not composed:
            continue
        race = Race((*survivors, *composed), replicates=settings.replicates)
        title = f"3 of 4: {'pairs' if length == 2 else 'triples'} of filters"
        whole = yield from _race(title, race, unit, races_end, found)
        found.sequences = _joined(found.sequences, [each for each in race.standings() if each.candidate not in singles])
        # Where the time was not enough, a sequence with fewer seeds must not replace what has run all of them.
        survivors = race.survivors if whole else survivors

    found.whole_race = whole
    found.finalists = _finalists(survivors, found, settings.space, most)
    found.all_finalists = found.finalists == _finalists(survivors, found, settings.space, FINALISTS)
    yield from _confirm(settings, unit, end, found, EarlierLooks() if looks is None else looks)


def _race(title: str, race: Race, unit: _MakeUnit, until_s: float, found: Findings) -> Generator[Round, _Results, bool]:
    """Runs a race; returns whether there was time for all of it."""
    while not race.finished:
        missing = race.missing()
        seeds = sorted({seed for _, seed in missing})
        found.candidates_left = len({candidate for candidate, _ in missing})
        rounds = f"round {race.round_number} of {len(race.rounds)}"
        units = [unit(IDENTITY, seed, "proxy") for seed in seeds]
        units += [unit(candidate, seed, "proxy") for candidate, seed in missing]
        results = yield Round(f"{title}, {rounds}, {found.candidates_left} candidates", units, until_s)
        for candidate, seed in missing:
            mine, other = results.get(unit(candidate, seed, "proxy")), results.get(unit(IDENTITY, seed, "proxy"))
            if mine is None or other is None:
                continue
            if mine.failure is not None:
                race.fail(candidate, mine.failure)
                found.failures[candidate] = mine.failure
                continue
            race.record(candidate, seed, mine.accuracy - _checked(other).accuracy)
            found.filter_ms[candidate] = mine.filter_ms
        found.best = _best_text(race.standings())
        left = len(race.missing())
        if left:
            found.resumes = True
            found.unfinished.append(f"{title}, {rounds}: no time for {left:,} cheap trainings")
            return False
        race.advance()
    return True


def _confirm(
    settings: Settings, unit: _MakeUnit, end: float, found: Findings, looks: EarlierLooks
) -> Generator[Round, _Results, None]:
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    compared = [IDENTITY, *found.finalists]
    found.candidates_left = len(found.finalists)
    in_a_row = max(1, min(4, int(_BLOCK_S / max(found.recipe_s, 1e-3))))
    title = f"4 of 4: {len(found.finalists)} finalists on the recipe, {settings.seeds} seeds each"
    units = [unit(candidate, seed, "recipe") for seed in seeds for candidate in compared]
    results = yield Round(title, units, end, in_a_row, found.recipe_s)
    for candidate in found.finalists:
        for seed in seeds:
            result = results.get(unit(candidate, seed, "recipe"))
            if result is not None and result.failure is not None:
                found.failures[candidate] = result.failure
            elif result is not None:
                found.filter_ms[candidate] = result.filter_ms
    confirmed = [candidate for candidate in found.finalists if candidate not in found.failures]
    for candidate in found.finalists:
        if candidate in found.failures:
            reason = _reason(candidate, found.failures[candidate])
            found.unfinished.append(f"{candidate.label} cannot be trained by the recipe and was left out: {reason}")
    found.singles = [_with_failure(each, found) for each in found.singles]
    found.sequences = [_with_failure(each, found) for each in found.sequences]
    compared = [IDENTITY, *confirmed]
    complete = [seed for seed in seeds if all(unit(one, seed, "recipe") in results for one in compared)]
    found.confirmed_seeds = len(complete)
    if len(complete) < settings.seeds:
        found.resumes = True
        found.unfinished.append(
            f"confirmation: no time for more than {len(complete)} of {settings.seeds} paired seeds of each finalist; a "
            f"training takes {found.recipe_s:.1f} s"
        )
    if len(complete) < 2 or not confirmed:
        return
    correct = {
        one: np.stack([_checked(results[unit(one, seed, "recipe")]).correct for seed in complete]) for one in compared
    }
    found.answer = answer = judge(
        correct[IDENTITY],
        {one: correct[one] for one in confirmed},
        filter_ms=found.filter_ms,
        margin=settings.margin,
        cost_weight=settings.cost_weight,
        all_tried=found.whole_race and found.all_finalists,
    )
    found.best = answer.sentence
    looks.record("confirmation", [one.name for one in confirmed], complete, answer.outcome)
    best = answer.winner or next((gain.candidate for gain in answer.gains if gain.candidate.placebo is None), None)
    if settings.test_context is None or best is None:
        return
    if answer.winner is None and not found.all_finalists:
        found.unfinished.append("the test pictures are kept for a run with a larger --budget")
        return
    if answer.winner is None and not (found.whole_race and len(complete) == settings.seeds):
        found.unfinished.append("the test pictures are kept until the search has its time")
        return
    yield from _test(settings, unit, best, complete, found, looks)


def _test(
    settings: Settings, unit: _MakeUnit, best: Candidate, seeds: Sequence[int], found: Findings, looks: EarlierLooks
) -> Generator[Round, _Results, None]:
    """Judges one candidate on the test pictures, unless these have been seen; trains only where no file is left."""
    assert found.answer is not None
    other = looks.other("test", [best.name], seeds)
    if other is not None and other.candidates == (best.name,) and set(other.seeds) <= set(seeds):
        seeds = other.seeds  # of a run that had time for fewer: the same look, from the same files
    elif other is not None:
        seen = f"it with {len(other.seeds)} seeds" if best.name in other.candidates else "another finalist"
        found.unfinished.append(
            f"the test pictures were not looked at again for {best.label}: an earlier run in this folder has seen "
            f"them, for {seen}; use other test pictures"
        )
        return
    looks.record("test", [best.name], seeds, found.answer.outcome)
    units = [unit(one, seed, "test") for seed in seeds for one in (IDENTITY, best)]
    results = yield Round("the test pictures, once", units, settings.budget_s, 1, found.recipe_s)
    complete = [seed for seed in seeds if all(unit(one, seed, "test") in results for one in (IDENTITY, best))]
    judged = {one: [results[unit(one, seed, "test")] for seed in complete] for one in (IDENTITY, best)}
    failure = next((result.failure for each in judged.values() for result in each if result.failure is not None), None)
    if failure is not None:
        found.unfinished.append(f"the test pictures cannot be judged: {failure}")
        return
    if len(complete) < len(seeds):
        found.resumes = True
        found.unfinished.append(f"test: no time for more than {len(complete)} of {len(seeds)} paired seeds")
    if len(complete) < 2:
        return
    correct = {one: np.stack([result.correct for result in each]) for one, each in judged.items()}
    milliseconds = found.filter_ms.get(best, 0.0)
    found.test = gain_of(best, correct[best], correct[IDENTITY], filter_ms=milliseconds, margin=settings.margin)


def _finalists(survivors: Sequence[Candidate], found: Findings, space: Space, most: int) -> list[Candidate]:
    """The best survivors and a placebo; where no filter survived, the best one that was dropped."""
    placebos = [one for one in space.singles() if one.placebo is not None]
    usable = [one for one in survivors if one not in found.failures]
    if not any(one.placebo is None for one in usable):
        real = [each for each in found.singles if each.candidate.placebo is None and each.seeds]
        real = [each for each in real if each.candidate not in found.failures]
        best = sorted(real, key=lambda each: -each.mean)[:1]
        usable = [each.candidate for each in best] + usable
    return finalists_of(usable, placebos, most)


def _parts(race: Race, found: Findings) -> list[Candidate]:
    """Single filters of which sequences are made: survivors, then those that were behind the best, but not harmful."""
    survivors = [one for one in race.survivors if one.filters]
    others = [each for each in found.singles if each.candidate.filters and each.candidate not in survivors]
    others = [each for each in others if each.seeds and each.mean > 0 and each.candidate not in found.failures]
    ranked = sorted(others, key=lambda each: -each.mean)
    return [one for one in (*survivors, *(each.candidate for each in ranked)) if len(one.steps) == 1]


def _checked(result: UnitResult) -> UnitResult:
    """Returns the result of a training of the identity, or of one that has not failed."""
    if result.failure is not None:
        reason = _reason(result.unit.candidate, result.failure)
        raise StriateError(f"the recipe without a filter cannot be trained: {reason}")
    return result


def _reason(candidate: Candidate, failure: str) -> str:
    """Returns why a candidate failed, without its label, which some reasons begin with."""
    return failure.removeprefix(f"{candidate.label}: ")


def _with_failure(standing: Standing, found: Findings) -> Standing:
    """Returns the standing, dropped if the candidate failed after its race."""
    failure = found.failures.get(standing.candidate)
    return standing if failure is None or standing.dropped is not None else replace(standing, dropped=failure)


def _joined(before: Sequence[Standing], after: Sequence[Standing]) -> list[Standing]:
    latest = {each.candidate: each for each in (*before, *after)}
    return sorted(latest.values(), key=lambda each: (each.dropped is not None, -each.mean if each.seeds else 0.0))


def _best_text(standings: Sequence[Standing]) -> str:
    known = [each for each in standings if each.seeds and each.dropped is None]
    if not known:
        return "nothing yet"
    best = max(known, key=lambda each: each.mean)
    low, high = best.interval
    return f"{best.candidate.label} {100 * best.mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
