import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.choosing.labels.ablation import answers, sets_of, weights_of


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 1000))
def test_sets_have_the_sizes_of_kept_and_dropped_pictures(kept: list[bool], seed: int) -> None:
    flags = np.array(kept)
    sets = sets_of(flags, seed)
    assert len(sets["random_kept"]) == len(sets["kept"]) == sum(kept)
    assert len(sets["random_dropped"]) == len(sets["dropped"])
    for first, second in (("kept", "dropped"), ("random_kept", "random_dropped")):
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
    )
    assert [answer.difference.verdict for answer in result] == ["better", "equivalent", "undecided"]
    better, equivalent, undecided = (answer.sentence() for answer in result)
    assert better.startswith("leaving them out: +2.00 points")
    assert better.endswith(": better")
    assert equivalent.endswith("no difference larger than 0.3 points")
    assert undecided.endswith("undecided")


def test_few_seeds_say_that_they_cannot_decide() -> None:
    (answer,) = answers({"all": [0.8] * 5, "kept": [0.81, 0.83, 0.86, 0.82, 0.84]}, margin=0.003)
    assert answer.difference.verdict == "undecided"
    assert "p of 5 seeds is never below 0.0625" in answer.sentence()
