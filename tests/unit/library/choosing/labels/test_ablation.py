import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.choosing.labels.ablation import SetName, answers, questions_of, sets_of, weights_of


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 1000))
def test_sets_have_the_sizes_of_kept_and_dropped_pictures(kept: list[bool], seed: int) -> None:
    flags = np.array(kept)
    sets = sets_of(flags, seed)
    assert len(sets["random_kept"]) == len(sets["kept"]) == sum(kept)
    assert len(sets["random_dropped"]) == len(sets["dropped"])
    pairs: list[tuple[SetName, SetName]] = [("kept", "dropped"), ("random_kept", "random_dropped")]
    for first, second in pairs:
        assert sorted([*sets[first], *sets[second]]) == sets["all"].tolist()
    assert all((np.diff(rows) > 0).all() for rows in sets.values())
    again = sets_of(flags, seed)
    assert all((again[name] == rows).all() for name, rows in sets.items())


def test_seeds_draw_other_random_sets_and_other_weights() -> None:
    kept = np.arange(200) % 3 > 0
    assert sets_of(kept, 0)["random_kept"].tolist() != sets_of(kept, 1)["random_kept"].tolist()
    assert sets_of(kept, 0)["kept"].tolist() == sets_of(kept, 1)["kept"].tolist()
    assert (weights_of(200, 0) == weights_of(200, 0)).all()
    assert (weights_of(200, 0) != weights_of(200, 1)).any()
    assert (weights_of(200, 0) != weights_of(200, 0, of="val")).any()
    assert weights_of(20_000, 0).mean() == pytest.approx(1, abs=0.05)


def test_a_clear_gain_a_tie_and_a_doubt_are_told_apart() -> None:
    noise = np.array([0.0002, -0.0001, 0.0001, -0.0002, 0.0001, 0.0, -0.0001, 0.0002])
    base = (0.9 + noise).tolist()
    result = answers(
        {
            "all": base,
            "kept": (0.92 + noise[::-1]).tolist(),
            "random_kept": (0.9195 + noise).tolist(),
            "dropped": (0.5 + 200 * noise).tolist(),
            "random_dropped": (0.5 - 100 * noise[::-1]).tolist(),
        },
        margin=0.003,
        seeds="repetitions",
    )
    assert [answer.difference.verdict for answer in result] == ["better", "equivalent", "undecided"]
    better, equivalent, undecided = (answer.sentence() for answer in result)
    assert better.startswith("leaving them out: +2.00 points")
    assert better.endswith(": better")
    assert equivalent.endswith("no difference larger than 0.3 points")
    assert undecided.endswith("undecided")


def test_few_seeds_say_that_they_cannot_decide() -> None:
    (answer,) = answers({"all": [0.8] * 5, "kept": [0.81, 0.83, 0.86, 0.82, 0.84]}, 0.003, "repetitions")
    assert answer.difference.verdict == "undecided"
    assert "p of 5 seeds is never below 0.0625" in answer.sentence()


@given(st.integers(5, 12), st.integers(0, 100))
def test_replicates_never_promise_more_than_their_spread(seeds: int, seed: int) -> None:
    """The interval of a bootstrap is no narrower than its replicates' standard deviation says."""
    values = np.random.default_rng(seed).normal(0.8, 0.01, (2, seeds))
    accuracies: dict[SetName, list[float]] = {"all": values[0].tolist(), "kept": values[1].tolist()}
    (replicates,) = answers(accuracies, 0.003, "replicates")
    (repetitions,) = answers(accuracies, 0.003, "repetitions")
    low, high = replicates.difference.interval
    assert (high - low) / 2 >= 1.96 * np.std(values[1] - values[0], ddof=1)
    assert low < repetitions.difference.interval[0] < repetitions.difference.interval[1] < high
    assert replicates.difference.mean == repetitions.difference.mean
    assert "never below" not in replicates.sentence()


@pytest.mark.parametrize("seeds", [8, 40])
def test_no_effect_is_missed_at_the_5_percent_level(seeds: int) -> None:
    """Two classifiers that are equally good: whatever the number of seeds, few intervals leave 0 out."""
    pictures, data_sets = 100, 300
    weights = np.stack([weights_of(pictures, seed, of="val") for seed in range(seeds)])
    weights /= weights.sum(1, keepdims=True)
    missed = decided = 0
    for number in range(data_sets):
        correct = np.random.default_rng(number).random((2, pictures)) < 0.8
        first, second = (weights @ one for one in correct)
        (answer,) = answers({"all": first.tolist(), "kept": second.tolist()}, 0.003, "replicates")
        low, high = answer.difference.interval
        missed += not low < 0 < high
        decided += answer.difference.verdict in ("better", "worse")
    assert missed <= 0.08 * data_sets
    assert decided == missed


def test_what_can_be_compared_needs_both_sets() -> None:
    assert questions_of(["all", "kept", "dropped"]) == [("all", "kept")]
    assert questions_of(["all", "dropped", "random_kept"]) == []
    assert len(questions_of(["all", "kept", "random_kept", "dropped", "random_dropped"])) == 3
