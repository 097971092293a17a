"""Two classifiers on the same pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from library.comparison import compare, mcnemar
from library.evaluation import Outcomes


def judged(right: list[bool], keys: str) -> Outcomes:
    probabilities = np.array([[0.9, 0.1] if one else [0.1, 0.9] for one in right], np.float32)
    return Outcomes(("a", "b"), tuple(keys), np.zeros(len(right), np.int64), probabilities)


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
    found = compare(first, second)
    assert found is not None
    assert (found.both, found.only_first, found.only_second, found.neither) == (1, 1, 0, 2)
    assert found.difference == pytest.approx(-0.25)
    assert found.interval[0] <= found.difference <= found.interval[1]


def test_the_other_way_round_it_is_the_other_way_round() -> None:
    rng = np.random.default_rng(0)
    keys = [chr(0x4E00 + number) for number in range(200)]
    first, second = (judged((rng.random(200) < share).tolist(), "".join(keys)) for share in (0.7, 0.8))
    there, back = compare(first, second), compare(second, first)
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
    assert compare(judged([True], "a"), judged([True], "b")) is None
