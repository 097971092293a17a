import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from library.evaluation.paired_tests import (
    MOST_EXACT,
    compare_pairs,
    compare_replicates,
    corrected,
    holm,
    mean_interval,
    sign_flip,
    smallest_p,
)

DIFFERENCES = st.lists(st.integers(-50, 50).map(lambda number: number / 16), min_size=2, max_size=8)


@given(DIFFERENCES)
def test_sign_flip_is_the_exact_permutation_test_of_scipy(differences: list[float]) -> None:
    tested: Any = stats.permutation_test(
        (np.asarray(differences),), np.mean, permutation_type="samples", n_resamples=10**6, vectorized=False
    )
    assert sign_flip(differences) == pytest.approx(tested.pvalue)


@given(DIFFERENCES, st.floats(0.1, 100))
def test_sign_flip_ignores_order_sign_and_unit(differences: list[float], unit: float) -> None:
    p_value = sign_flip(differences)
    assert sign_flip(differences[::-1]) == p_value
    assert sign_flip([-unit * difference for difference in differences]) == p_value
    assert smallest_p(len(differences)) <= p_value <= 1


def test_differences_of_one_sign_reach_the_smallest_p() -> None:
    for repetitions in range(1, MOST_EXACT + 1):
        assert sign_flip(range(1, repetitions + 1)) == smallest_p(repetitions)
    assert smallest_p(5) == 0.0625
    assert sign_flip([0.5] * 40) == smallest_p(40) == 1e-5


def test_many_differences_are_tested_by_random_signs() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, 30)
    expected = cast(Any, stats.ttest_1samp(differences, 0)).pvalue
    assert sign_flip(differences) == pytest.approx(expected, abs=0.02)
    assert sign_flip(differences, seed=1) == pytest.approx(sign_flip(differences), abs=0.01)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-3))
def test_the_interval_of_the_mean_is_that_of_scipy(differences: list[float]) -> None:
    expected = cast(Any, stats.ttest_1samp(differences, 0)).confidence_interval(0.95)
    assert mean_interval(differences) == pytest.approx((expected.low, expected.high))


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9), st.floats(0.01, 2))
def test_equivalent_means_that_the_interval_lies_within(differences: list[float], margin: float) -> None:
    for compare in (compare_pairs, compare_replicates):
        compared = compare([0.0] * len(differences), differences, margin=margin)
        low, high = compared.interval
        assert (compared.verdict == "equivalent") == (low > -margin and high < margin)


def test_an_interval_of_replicates_is_where_the_next_one_falls() -> None:
    """In a bootstrap the truth lies about the result as a further replicate does about the others."""
    values = np.random.default_rng(3).normal(0.2, 1, (2_000, 9))
    intervals = [compare_replicates([0.0] * 8, row[:8].tolist()).interval for row in values]
    inside = [low < last < high for (low, high), last in zip(intervals, values[:, 8], strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-3))
def test_p_of_replicates_agrees_with_their_interval(differences: list[float]) -> None:
    compared = compare_replicates([0.0] * len(differences), differences)
    low, high = compared.interval
    if min(abs(low), abs(high)) > 1e-6:
        assert (compared.p_value < 0.05) == (low > 0 or high < 0)


def test_replicates_that_do_not_differ_say_so() -> None:
    same, one = compare_replicates([0.9] * 6, [0.9] * 6, margin=0.003), compare_replicates([0.8], [0.9], margin=0.5)
    assert (same.mean, same.interval, same.p_value, same.verdict) == (0, (0, 0), 1, "equivalent")
    assert (one.interval, one.p_value, one.verdict) == ((-math.inf, math.inf), 1, "undecided")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_agrees_with_its_definition(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    ranked = sorted(p_values)
    steps = [min(1.0, (len(ranked) - rank) * p_value) for rank, p_value in enumerate(ranked)]
    assert sorted(adjusted) == [max(steps[: rank + 1]) for rank in range(len(steps))]
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))


def test_no_difference_is_equivalent_and_never_significant() -> None:
    compared = compare_pairs([0.9] * 6, [0.9] * 6, margin=0.003)
    assert (compared.mean, compared.interval, compared.p_value) == (0, (0, 0), 1)
    assert compared.verdict == "equivalent"
    assert compare_pairs([0.9] * 6, [0.9] * 6).verdict == "undecided"


def test_a_verdict_needs_enough_repetitions() -> None:
    first, second = [0.80, 0.81, 0.79, 0.80, 0.82, 0.80], [0.90, 0.92, 0.90, 0.91, 0.91, 0.90]
    assert compare_pairs(first[:5], second[:5], margin=0.003).verdict == "undecided"
    assert compare_pairs(first, second, margin=0.003).verdict == "better"
    assert compare_pairs(second, first, margin=0.003).verdict == "worse"
    assert compare_pairs(first[:1], second[:1], margin=0.003).interval == (-math.inf, math.inf)


def test_correction_makes_one_of_many_comparisons_undecided() -> None:
    clear = compare_pairs([0.0] * 6, [1, 2, 1, 2, 1, 2])
    assert clear.verdict == "better"
    assert [one.verdict for one in corrected([clear, clear])] == ["undecided", "undecided"]


def test_unpaired_values_and_empty_margins_are_refused() -> None:
    for first, second, margin in (([], [], 1.0), ([1.0], [1.0, 2.0], 1.0), ([1.0], [1.0], 0.0)):
        with pytest.raises(ValueError, match=r"paired|positive"):
            compare_pairs(first, second, margin=margin)
