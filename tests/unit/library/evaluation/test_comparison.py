"""Two classifiers on the same pictures."""

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


def test_two_that_never_differ_are_not_told_apart() -> None:
    assert mcnemar(0, 0) == (1.0, "exact")


def test_mcnemars_chi_square_test_by_hand() -> None:
    # (|10 - 30| - 1)^2 / 40 = 9.025; of chi-square with one degree of freedom, erfc(sqrt(9.025 / 2)).
    assert mcnemar(10, 30) == (pytest.approx(0.002663, abs=1e-6), "chi2")
    assert mcnemar(20, 20) == (1.0, "chi2")


def test_pictures_are_matched_by_key_and_those_that_only_one_has_judged_are_left_out() -> None:
    first = judged([True, True, False, False, True], "abcde")
    second = judged([True, False, False, False, True], "badcx")
    found = compared(first, second)
    assert found is not None
    assert (found.both, found.only_first, found.only_second, found.neither) == (1, 1, 0, 2)
    assert found.difference == pytest.approx(-0.25)
    assert found.interval[0] <= found.difference <= found.interval[1]


def test_the_other_way_round_it_is_the_other_way_round() -> None:
    rng = np.random.default_rng(0)
    keys = [chr(0x4E00 + number) for number in range(200)]
    first, second = (judged((rng.random(200) < share).tolist(), "".join(keys)) for share in (0.7, 0.8))
    there, back = compared(first, second), compared(second, first)
    assert there is not None
    assert back is not None
    low, high = there.interval
    assert (
        dataclasses.replace(
            back,
            only_first=there.only_first,
            only_second=there.only_second,
            difference=there.difference,
            interval=there.interval,
        )
        == there
    )
    assert (back.only_first, back.only_second) == (there.only_second, there.only_first)
    assert back.interval == pytest.approx((-high, -low), abs=0.02)


def test_without_a_picture_in_common_there_is_nothing_to_compare() -> None:
    assert compared(judged([True], "a"), judged([True], "b")) is None


def test_pairs_of_shards_add_up_to_those_of_the_dataset() -> None:
    first, second = judged([True, True, False, False], "abcd"), judged([False, True, True, False], "abcd")
    halves = Pairs()
    for keys in ("ab", "cd"):
        part = Pairs()
        part.add(*(judged([one.correct[one.keys.index(key)] for key in keys], keys) for one in (first, second)))
        halves.merge(part)
    assert halves == paired(first, second) == Pairs(both=1, only_first=1, only_second=1, neither=1)


def test_the_interval_is_that_of_drawing_the_pictures_anew() -> None:
    found = compare(Pairs(both=300, only_first=30, only_second=60, neither=110))
    assert found is not None
    gained = np.repeat([0, -1, 1, 0], [300, 30, 60, 110])
    drawn = np.random.default_rng(1).choice(gained, (4000, 500)).mean(1)
    assert found.interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.004)
