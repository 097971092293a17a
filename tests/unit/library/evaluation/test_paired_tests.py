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
    corrected,
    equivalence,
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


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9).filter(lambda values: np.std(values) > 1e-3))
def test_equivalence_agrees_with_one_sided_tests_and_interval(differences: list[float]) -> None:
    p_value = equivalence(differences, 0.5)
    sides = [
        cast(Any, stats.ttest_1samp(differences, -0.5, alternative="greater")).pvalue,
        cast(Any, stats.ttest_1samp(differences, 0.5, alternative="less")).pvalue,
    ]
    assert p_value == pytest.approx(max(sides))
    low, high = mean_interval(differences, 0.9)
    assert (p_value < 0.05) == (low > -0.5 and high < 0.5)


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
