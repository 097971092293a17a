"""The decision of a filter search, on simulated trainings with chance of seeds and of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from library.choosing.filter_search.answer import gain_of, judge
from library.choosing.filter_search.space import Candidate

FILTERS = [Candidate(text) for text in ("invert", "equalize", "median_blur(size=3)", "edges", "sharpen")]
PLACEBO = Candidate(placebo=1)


def trainings(
    rng: np.random.Generator, gain: float, seeds: int = 8, pictures: int = 400
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The identity and a candidate: a picture's difficulty is shared, each seed shifts all pictures of a training.

    Args:
        rng: of all draws.
        gain: of the candidate.
        seeds: repetitions.
        pictures: judged.
    """
    difficulty = rng.uniform(0.6, 1.0, pictures)
    both = [
        rng.random((seeds, pictures)) < difficulty + shift + 0.02 * rng.standard_normal((seeds, 1))
        for shift in (0.0, gain)
    ]
    return both[0], both[1]


@pytest.mark.parametrize("each", [0.0, 0.1])
def test_no_effect_is_rarely_claimed(each: float) -> None:
    rng = np.random.default_rng(1)
    claims = 0
    for _ in range(200):
        finalists: dict[Candidate, NDArray[np.bool_]] = {}
        difficulty = rng.uniform(0.6, 1.0, 400)
        identity = rng.random((8, 400)) < difficulty + 0.02 * rng.standard_normal((8, 1))
        for one in (*FILTERS, PLACEBO):
            effect = each * rng.standard_normal(400)
            finalists[one] = rng.random((8, 400)) < difficulty + effect + 0.02 * rng.standard_normal((8, 1))
        claims += judge(identity, finalists).outcome == "helps"
    # 0.9% and 0.1% of 1,500 such draws are claims; 0.9% of 200 and three standard deviations.
    assert claims <= 5


def test_a_real_gain_is_found_with_an_interval_that_holds_it() -> None:
    rng = np.random.default_rng(2)
    found, held = 0, 0
    for _ in range(200):
        identity, better = trainings(rng, gain=-0.1)
        answer = judge(better, {FILTERS[0]: identity, PLACEBO: better})
        found += answer.winner == FILTERS[0]
        low, high = answer.gains[0].interval
        held += low < 0.1 < high
    assert found >= 197
    # 95% of 200, less three standard deviations.
    assert held >= 181


def test_a_gain_on_a_few_pictures_only_is_not_a_gain() -> None:
    """Ten seeds agree that one picture of forty is better; other pictures need not be."""
    identity = np.ones((10, 40), np.bool_)
    identity[:, 0] = False
    answer = judge(identity, {FILTERS[0]: np.ones((10, 40), np.bool_)})
    assert answer.outcome == "undecided"
    assert answer.gains[0].p_value > 0.05


@pytest.mark.parametrize(
    ("pictures", "sentence"), [(2000, "no filter helps: at most 0.2 points"), (200, "gains more than 1.9 points")]
)
def test_equal_results_say_no_more_than_so_many_pictures_can(pictures: int, sentence: str) -> None:
    same = np.random.default_rng(3).random((8, pictures)) < 0.9
    answer = judge(same, {FILTERS[0]: same, PLACEBO: same})
    assert sentence in answer.sentence
    assert all(gain.p_value == 1 for gain in answer.gains)


@pytest.mark.parametrize(("pictures", "share"), [(100, 0.01), (300, 0.01), (1000, 0.005), (3000, 0.001)])
def test_a_gain_on_rare_pictures_is_within_interval_and_bound(pictures: int, share: float) -> None:
    """The filter helps rare pictures for certain, and the confirmation half may hold few of them, or none."""
    rng = np.random.default_rng(pictures)
    outside, above = 0, 0
    better = np.ones((10, pictures), np.bool_)
    for _ in range(200):
        identity = np.broadcast_to(rng.random(pictures) >= share, better.shape)
        gain = gain_of(FILTERS[0], better, identity)
        outside += not gain.interval[0] <= share <= gain.interval[1]
        above += gain.bound < share
    # 5% in the long run; 5% of 200 and three standard deviations.
    assert outside <= 19
    assert above <= 19


def test_a_p_value_below_5_percent_has_an_interval_without_zero() -> None:
    rng = np.random.default_rng(8)
    for _ in range(300):
        seeds, pictures = int(rng.integers(8, 12)), int(rng.integers(20, 600))
        chance, gain = 10 ** rng.uniform(-3, -0.5, 2)
        identity = rng.random((seeds, pictures)) >= chance
        one = gain_of(FILTERS[0], identity | (rng.random(pictures) < gain), identity)
        assert one.p_value >= 0.05 or one.interval[0] > 0


def test_without_a_confirmed_filter_nothing_is_said_about_filters() -> None:
    same = np.random.default_rng(9).random((8, 500)) < 0.9
    answer = judge(same, {PLACEBO: same})
    assert (answer.outcome, answer.sentence) == ("undecided", "undecided: no filter could be confirmed")


def test_the_bound_of_no_help_is_rounded_up() -> None:
    rng = np.random.default_rng(4)
    identity = rng.random((20, 20_000)) < 0.99
    answer = judge(identity, {FILTERS[0]: rng.random((20, 20_000)) < 0.99}, margin=0.005)
    assert answer.outcome == "none"
    points = float(answer.sentence.split()[-2])
    assert points >= 100 * max(gain.bound for gain in answer.gains)


def test_a_cost_can_outweigh_a_gain_and_chooses_among_winners() -> None:
    rng = np.random.default_rng(5)
    best, worse = trainings(rng, gain=-0.2)
    nearly = best.copy()
    nearly[:, :8] = False
    times = {FILTERS[0]: 50.0, FILTERS[1]: 0.1}
    finalists = {FILTERS[0]: best, FILTERS[1]: nearly}
    assert judge(worse, finalists, filter_ms=times).winner == FILTERS[0]
    assert judge(worse, finalists, filter_ms=times, cost_weight=0.1).winner == FILTERS[1]
    dear = judge(worse, {FILTERS[0]: best}, filter_ms=times, cost_weight=1)
    assert dear.winner is None
    assert "--cost-weight" in dear.sentence
    assert dear.outcome == "none"
    # "None" holds only where all candidates were tried, and no other one may help.
    cut = judge(worse, {FILTERS[0]: best}, filter_ms=times, cost_weight=1, all_tried=False)
    assert cut.outcome == "undecided"
    unclear = worse.copy()
    unclear[: len(unclear) // 2] = best[: len(unclear) // 2]
    assert gain_of(FILTERS[1], unclear, worse).verdict == "undecided"
    both = judge(worse, {FILTERS[0]: best, FILTERS[1]: unclear}, filter_ms=times, cost_weight=1)
    assert (both.outcome, both.winner) == ("undecided", None)


def test_a_placebo_that_wins_is_reported_and_never_the_winner() -> None:
    rng = np.random.default_rng(6)
    best, worse = trainings(rng, gain=-0.2)
    answer = judge(worse, {PLACEBO: best, FILTERS[0]: worse})
    assert answer.placebo_won
    assert answer.winner is None


def test_other_finalists_that_help_are_counted_without_dear_ones() -> None:
    best, worse = trainings(np.random.default_rng(7), gain=-0.2)
    times = {FILTERS[2]: 500.0}

    def sentence(*helpful: Candidate) -> str:
        return judge(worse, dict.fromkeys(helpful, best), filter_ms=times, cost_weight=0.1).sentence

    assert "more" not in sentence(FILTERS[0])
    assert sentence(FILTERS[0], FILTERS[1]).endswith("; 1 more finalist helps")
    assert sentence(FILTERS[0], FILTERS[1], FILTERS[3]).endswith("; 2 more finalists help")
    assert "more" not in sentence(FILTERS[0], FILTERS[2])
    assert sentence(FILTERS[2]).endswith(
        "but its filters take 500 ms a picture, which --cost-weight 0.1 counts as 50 points"
    )


def test_a_gain_needs_the_same_seeds_and_pictures() -> None:
    best, worse = trainings(np.random.default_rng(7), gain=-0.2)
    with pytest.raises(ValueError, match="not the same seeds"):
        gain_of(FILTERS[0], best[:4], worse)


def test_nothing_is_decided_by_seven_seeds_or_by_half_a_race() -> None:
    best, worse = trainings(np.random.default_rng(8), gain=-0.2)
    few = judge(worse[:7], {FILTERS[0]: best[:7]})
    assert (few.outcome, few.winner) == ("undecided", None)
    assert "7 paired seeds instead of at least 8" in few.sentence
    same = np.random.default_rng(9).random((8, 5000)) < 0.9
    assert judge(same, {FILTERS[0]: same}).outcome == "none"
    half = judge(same, {FILTERS[0]: same}, all_tried=False)
    assert half.outcome == "undecided"
    assert "no time for all candidates" in half.sentence
    assert judge(worse, {FILTERS[0]: best}, all_tried=False).outcome == "helps"
