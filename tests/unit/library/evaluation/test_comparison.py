"""Comparison of two classifiers on the same pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from library.evaluation.comparison import Comparison, compare, mcnemar
from library.evaluation.sums import Outcomes, Pairs


def judged(right: list[bool], keys: str) -> Outcomes:
    probabilities = np.array([[0.9, 0.1] if one else [0.1, 0.9] for one in right], np.float32)
    return Outcomes(("a", "b"), tuple(keys), np.zeros(len(right), np.int64), probabilities)


def compared(first: Outcomes, second: Outcomes) -> Comparison | None:
    return compare(paired(first, second))


def paired(first: Outcomes, second: Outcomes) -> Pairs:
    pairs = Pairs()
    pairs.add(first, second)
    return pairs


def test_mcnemars_exact_test_by_hand() -> None:
    # Twice the chance of at most 1 head in 10 throws: 2 * (1 + 10) / 1024.
    assert mcnemar(1, 9) == (pytest.approx(0.021484375), "exact")
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(3, 3) == (1.0, "exact")


def test_two_classifiers_that_never_differ_have_p_value_one() -> None:
    assert mcnemar(0, 0) == (1.0, "exact")


def test_mcnemars_chi_square_test_by_hand() -> None:
    # (|10 - 30| - 1)^2 / 40 = 9.025; of chi-square with one degree of freedom, erfc(sqrt(9.025 / 2)).
    assert mcnemar(10, 30) == (pytest.approx(0.002663, abs=1e-6), "chi2")
    assert mcnemar(20, 20) == (1.0, "chi2")


def test_pictures_are_matched_by_key_and_unmatched_ones_are_left_out() -> None:
    first = judged([True, True, False, False, True], "abcde")
    second = judged([True, False, False, False, True], "badcx")
    comparison = compared(first, second)
    assert comparison is not None
    assert (comparison.both, comparison.only_first, comparison.only_second, comparison.neither) == (1, 1, 0, 2)
    assert comparison.difference == pytest.approx(-0.25)
    assert comparison.interval[0] <= comparison.difference <= comparison.interval[1]


def test_swapping_the_classifiers_swaps_the_result() -> None:
    rng = np.random.default_rng(0)
    keys = [chr(0x4E00 + number) for number in range(200)]
    first, second = (judged((rng.random(200) < share).tolist(), "".join(keys)) for share in (0.7, 0.8))
    forward, reverse = compared(first, second), compared(second, first)
    assert forward is not None
    assert reverse is not None
    low, high = forward.interval
    assert (
        dataclasses.replace(
            reverse,
            only_first=forward.only_first,
            only_second=forward.only_second,
            difference=forward.difference,
            interval=forward.interval,
        )
        == forward
    )
    assert (reverse.only_first, reverse.only_second) == (forward.only_second, forward.only_first)
    assert reverse.interval == pytest.approx((-high, -low), abs=0.02)


def test_without_common_pictures_there_is_no_comparison() -> None:
    assert compared(judged([True], "a"), judged([True], "b")) is None


def test_pairs_of_shards_add_up_to_those_of_the_dataset() -> None:
    first, second = judged([True, True, False, False], "abcd"), judged([False, True, True, False], "abcd")
    halves = Pairs()
    for keys in ("ab", "cd"):
        part = Pairs()
        part.add(*(judged([one.correct[one.keys.index(key)] for key in keys], keys) for one in (first, second)))
        halves.merge(part)
    assert halves == paired(first, second) == Pairs(both=1, only_first=1, only_second=1, neither=1)


def test_the_interval_equals_that_of_resampling_the_pictures() -> None:
    comparison = compare(Pairs(both=300, only_first=30, only_second=60, neither=110))
    assert comparison is not None
    gained = np.repeat([0, -1, 1, 0], [300, 30, 60, 110])
    drawn = np.random.default_rng(1).choice(gained, (4000, 500)).mean(1)
    assert comparison.interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.004)
