"""A search as a script of rounds: its answer, its budget, and that it resumes; units are computed here by a formula."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from jobs.search.earlier_looks import EarlierLooks
from jobs.search.rounds import Rounds
from jobs.search.script import Findings, RecipeLimit, RecipeTooLong, Settings, affordable_finalists, reserved_s, search
from library.choosing.filter_search.race import FINALISTS
from library.choosing.filter_search.space import Candidate, Space
from library.choosing.filter_search.trials import Unit, UnitResult
from library.errors import StriateError
from library.randomness import generator

PICTURES = 800
SPACE = Space(("median_blur(size=3)", "invert", "sharpen(amount=0.5)", "equalize"), length=3, placebos=2)


@dataclass
class Files:
    """The files of units, with a clock that a training advances."""

    results: dict[Unit, UnitResult] = field(default_factory=dict[Unit, UnitResult])
    now: float = 0.0

    def read(self, unit: Unit) -> UnitResult | None:
        return self.results.get(unit)


def train(unit: Unit, gain: float, seconds: float = 1.0) -> UnitResult:
    """Pictures that are easy or hard for all; `median_blur` makes some of the hard ones right."""
    seed = unit.candidate.seed(unit.seed)
    ease = generator("pictures", unit.stage).random(PICTURES) + generator("training", seed).normal(0, 0.05, PICTURES)
    helps = gain if "median_blur" in unit.candidate.filters else 0.0
    harms = 0.1 if "invert" in unit.candidate.filters else 0.0
    own = generator("candidate", unit.candidate.name, seed).normal(0, 0.01, PICTURES)
    return UnitResult(unit, ease + own + helps - harms > 0.3, seconds, 0.1)


def run(
    settings: Settings,
    files: Files,
    gain: float,
    most: int | None = None,
    looks: EarlierLooks | None = None,
    proxy_s: float = 1.0,
) -> tuple[Findings, Rounds]:
    """Computes units until the search ends, or as many as `most`, as if it were killed then."""
    found = Findings()
    start = files.now
    rounds = Rounds(
        search(settings, lambda: files.now - start, found, looks), files, settings.workers, lambda: files.now - start
    )
    while (block := rounds.take()) is not None:
        for text in block.units:
            unit = Unit.from_json(json.loads(text))
            result = train(unit, gain, proxy_s if unit.stage == "proxy" else 1.0)
            files.results[unit] = result
            files.now += result.seconds / settings.workers
        rounds.done(block)
        if most is not None and len(files.results) >= most:
            break
    return found, rounds


def settings(budget_s: float = 1e6) -> Settings:
    return Settings(SPACE, "context", budget_s, test_context="test")


def test_a_filter_that_helps_is_found_alone_or_in_a_sequence() -> None:
    found, rounds = run(settings(), Files(), 0.1)
    assert found.answer is not None
    assert found.answer.winner is not None
    assert "median_blur" in found.answer.winner.filters
    assert (found.unfinished, found.resumes) == ([], False)
    assert found.test is not None
    assert found.test.interval[0] > 0
    assert {len(each.candidate.steps) for each in found.sequences} >= {2}
    assert rounds.is_finished


def test_where_no_filter_helps_none_wins_and_one_is_still_confirmed() -> None:
    found, _ = run(settings(), Files(), 0.0)
    assert found.answer is not None
    assert found.answer.winner is None
    assert any(gain.candidate.placebo is None for gain in found.answer.gains)
    assert any(gain.candidate.placebo is not None for gain in found.answer.gains)


def test_a_sequence_that_the_space_lists_races_once() -> None:
    space = Space(("median_blur(size=3)", "equalize", "median_blur(size=3) | equalize"), ("always",), placebos=1)
    found, _ = run(replace(settings(), space=space), Files(), 0.0)
    listed = [each.candidate for each in (*found.singles, *found.sequences)]
    assert Candidate("equalize | median_blur(size=3)") in listed
    assert len(set(listed)) == len(listed)
    assert len(set(found.finalists)) == len(found.finalists) > 2


def test_the_confirmation_has_seeds_that_no_race_has_seen() -> None:
    files = Files()
    run(settings(), files, 0.1)
    seeds = {
        stage: {unit.seed for unit in files.results if unit.stage == stage} for stage in ("proxy", "recipe", "test")
    }
    assert len(seeds["recipe"]) == 10
    assert seeds["recipe"] == seeds["test"]
    assert not seeds["recipe"] & seeds["proxy"]


@pytest.mark.parametrize("killed_after", [1, 7, 60, 120])
def test_a_killed_search_comes_to_the_same_answer_and_repeats_nothing(killed_after: int) -> None:
    whole, files = run(settings(), Files(), 0.1)[0], Files()
    run(settings(), files, 0.1, most=killed_after)
    before = set(files.results)
    again, rounds = run(settings(), files, 0.1)
    assert again.answer == whole.answer
    assert again.test == whole.test
    assert rounds.computed == len(files.results) - len(before)


@pytest.mark.parametrize("budget_s", [20.0, 60.0, 90.0])
def test_a_budget_that_is_too_small_is_kept_and_what_is_left_out_said(budget_s: float) -> None:
    files = Files()
    found, _ = run(settings(budget_s), files, 0.1)
    # A second each; a block of four may be begun before the first times are known.
    assert len(files.results) <= budget_s + 4
    assert found.unfinished
    assert found.resumes


def test_the_budget_reserves_time_for_the_confirmation() -> None:
    assert affordable_finalists(settings(10_000), 1.0) == FINALISTS
    assert affordable_finalists(settings(100), 10.0) == 1
    counts = [affordable_finalists(settings(budget), 1.0) for budget in (50, 70, 90, 110, 130)]
    assert counts == sorted(counts)
    files = Files()
    found, _ = run(settings(150.0), files, 0.1)
    assert found.confirmed_seeds == 10


def test_the_first_training_ends_where_no_other_could_follow_it() -> None:
    limit = RecipeLimit.of(settings(600.0))
    limit.check(20.0, 1e-3)  # too soon to say
    limit.check(100.0, 0.34)
    limit.check(300.0, 1.0)
    for seconds, done in ((100.0, 0.3), (301.0, 1.0)):
        with pytest.raises(RecipeTooLong, match="needs 30 of them"):
            limit.check(seconds, done)
    with pytest.raises(RecipeTooLong, match=r"takes about 1 h 00 min, .*at least 60h0m, or"):
        limit.check(36.0, 0.01)
    # With the budget that it names there is time for a filter.
    assert affordable_finalists(settings(3600 * 60), 3600.0) >= 1
    assert reserved_s(settings(3600 * 60), 3600.0, 1) <= 0.6 * 3600 * 60
    with pytest.raises(RecipeTooLong, match="has taken 6 min 40 s"):
        limit.check(400.0, 1.0)  # early stopping may end it at any time
    # Features that were cached first are not in proportion to the steps.
    limit.check(2.0, 0.1, before_s=250.0)
    with pytest.raises(RecipeTooLong, match="takes about 5 min 20 s"):
        limit.check(7.0, 0.1, before_s=250.0)


def run_with_failures(stage: str, filters: str) -> Findings:
    """A search in which candidates whose filters begin so cannot be trained at a stage."""
    files, found = Files(), Findings()
    rounds = Rounds(search(settings(), lambda: 0.0, found), files, 1, lambda: 0.0)
    while (block := rounds.take()) is not None:
        for text in block.units:
            unit = Unit.from_json(json.loads(text))
            result = train(unit, 0.1)
            if unit.stage == stage and unit.candidate.filters.startswith(filters) and unit.candidate.filters:
                failure = f"{unit.candidate.label}: only 8 bits"
                result = replace(result, correct=np.zeros(0, np.bool_), failure=failure)
            files.results[unit] = result
        rounds.done(block)
    return found


def test_a_candidate_that_cannot_be_trained_is_left_out_with_its_reason() -> None:
    found = run_with_failures("proxy", "equalize")
    dropped = {each.candidate: each.dropped for each in found.singles}
    assert dropped[Candidate("equalize")] == "equalize: only 8 bits"
    assert found.answer is not None
    assert found.answer.winner is not None
    assert found.unfinished == []


def test_finalists_that_the_recipe_cannot_train_are_named_with_a_reason() -> None:
    found = run_with_failures("recipe", "")
    failed = [one for one in found.finalists if one.filters]
    assert failed
    standings = {each.candidate: each.dropped for each in (*found.singles, *found.sequences)}
    for one in failed:
        assert standings[one] == f"{one.label}: only 8 bits"
        assert f"{one.label} cannot be trained by the recipe and was left out: only 8 bits" in found.unfinished
    assert found.answer is not None
    assert found.answer.sentence == "undecided: no filter could be confirmed"
    assert not found.resumes


def test_a_recipe_that_cannot_be_trained_ends_the_search() -> None:
    files, found = Files(), Findings()
    rounds = Rounds(search(settings(), lambda: 0.0, found), files, 1, lambda: 0.0)
    block = rounds.take()
    assert block is not None
    (unit,) = (Unit.from_json(json.loads(text)) for text in block.units)
    files.results[unit] = UnitResult(unit, np.zeros(0, np.bool_), 1.0, 0.0, "identity: the loss is nan")
    with pytest.raises(StriateError, match=r"^the recipe without a filter cannot be trained: the loss is nan"):
        rounds.done(block)


def test_the_test_pictures_are_seen_by_one_candidate_only() -> None:
    looks = EarlierLooks("first", {"confirmation": "val", "test": "test pictures"})
    files = Files()
    first, _ = run(settings(), files, 0.1, looks=looks)
    assert first.test is not None
    assert [look.pictures for look in looks.looks] == ["confirmation", "test"]
    again, _ = run(settings(), files, 0.1, looks=looks)
    assert again.test == first.test  # the same look, from the same files
    assert len(looks.looks) == 2
    # A run with time for more seeds repeats the look of the one that had fewer.
    more, _ = run(replace(settings(), seeds=12), files, 0.1, looks=looks)
    assert more.answer is not None
    assert len(more.answer.gains[0].by_seed) == 12
    assert more.test == first.test
    assert (looks.count("confirmation"), looks.count("test")) == (2, 1)


@pytest.mark.parametrize(("seen", "text"), [("sharpen(amount=0.5)", "for another finalist"), ("", "it with 12 seeds")])
def test_test_pictures_that_were_seen_for_something_else_are_not_shown(seen: str, text: str) -> None:
    files = Files()
    whole, _ = run(settings(), files, 0.1)
    assert whole.test is not None
    looks = EarlierLooks("first", {"confirmation": "val", "test": "test pictures"})
    looks.record("test", [seen or whole.test.candidate.name], range(1000, 1012), "helps")
    found, _ = run(settings(), files, 0.1, looks=looks)
    assert found.test is None
    assert text in found.unfinished[-1]
    assert not found.resumes


def test_an_answer_that_is_not_final_leaves_the_test_pictures_unseen() -> None:
    looks = EarlierLooks("question", {"confirmation": "val", "test": "test pictures"})
    found, _ = run(settings(60.0), Files(), 0.0, looks=looks)
    assert found.unfinished
    assert found.test is None
    assert looks.count("test") == 0


def test_a_budget_for_fewer_finalists_leaves_the_test_pictures_unseen() -> None:
    looks = EarlierLooks("question", {"confirmation": "val", "test": "test pictures"})
    space = Space(("median_blur(size=3)", "sharpen(amount=0.5)", "equalize"), ("always",), length=1, placebos=1)
    few = replace(settings(90.0), space=space, margin=0.05)
    found, _ = run(few, Files(), 0.0, looks=looks, proxy_s=0.1)
    assert (found.whole_race, found.confirmed_seeds, found.all_finalists) == (True, 10, False)
    assert found.answer is not None
    assert found.answer.sentence.startswith("undecided: no finalist helps")
    assert (found.test, looks.count("test")) == (None, 0)
    assert found.unfinished[-1] == "the test pictures are kept for a run with a larger --budget"
    assert not found.resumes  # the same command would not confirm more
    whole, _ = run(replace(few, budget_s=1e6), Files(), 0.0, looks=looks)
    assert whole.answer is not None
    assert whole.answer.outcome == "none"
    assert whole.test is not None


def test_a_test_without_time_is_left_out_and_listed() -> None:
    files = Files()
    run(settings(), files, 0.1)
    for unit in [unit for unit in files.results if unit.stage == "test"]:
        del files.results[unit]
    found, _ = run(settings(9.0), files, 0.1)
    assert found.answer is not None
    assert sum(unit.stage == "test" for unit in files.results) <= 9
    assert any(text.startswith("test: no time") for text in found.unfinished)


def test_a_result_that_cannot_be_read_is_computed_once_more_then_an_error() -> None:
    files = Files()
    rounds = Rounds(search(settings(), lambda: 0.0, Findings()), files, 1, lambda: 0.0)
    block = rounds.take()
    assert block is not None
    rounds.done(block)  # no file
    again = rounds.take()
    assert again is not None
    assert again == block
    with pytest.raises(StriateError, match="identity was written twice and cannot be read"):
        rounds.done(again)


def test_a_candidate_that_ends_its_worker_is_out_but_never_the_identity() -> None:
    files, found = Files(), Findings()
    rounds = Rounds(search(settings(), lambda: 0.0, found), files, 1, lambda: 0.0)
    while (block := rounds.take()) is not None:
        units = [Unit.from_json(json.loads(text)) for text in block.units]
        if "sharpen" in block.name:
            rounds.give_up(block, "a worker ended 4 times")
            continue
        files.results |= {unit: train(unit, 0.1) for unit in units}
        rounds.done(block)
    assert found.failures[Candidate("sharpen(amount=0.5)")] == "a worker ended 4 times"
    assert found.answer is not None
    assert found.answer.winner is not None
    rounds = Rounds(search(settings(), lambda: 0.0, Findings()), Files(), 1, lambda: 0.0)
    block = rounds.take()
    assert block is not None
    with pytest.raises(StriateError, match="without a filter cannot be trained"):
        rounds.give_up(block, "a worker ended 4 times")
