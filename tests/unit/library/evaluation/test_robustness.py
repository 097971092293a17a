"""Corruptions, and accuracy under them."""

from __future__ import annotations

import numpy as np
import pytest

from library.evaluation.robustness import CORRUPTIONS, Corruption, chosen, measure
from tests.picture_examples import scene

ALL = [pytest.param(one, id=f"{one.name}{one.strength}") for one in CORRUPTIONS]


@pytest.mark.parametrize("corruption", ALL)
@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, "uint8"), (3, "uint8"), (4, "uint8"), (2, "uint16"), (3, "float32")]
)
def test_shape_and_dtype_stay_and_the_input_is_unchanged(corruption: Corruption, channels: int, dtype: str) -> None:
    pixels = scene(40, 56, channels, dtype)
    before = pixels.copy()
    corrupted = corruption(pixels, "key")
    assert (corrupted.shape, corrupted.dtype) == (pixels.shape, pixels.dtype)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("corruption", ALL)
def test_the_same_key_gives_the_same_picture(corruption: Corruption) -> None:
    pixels = scene(40, 56)
    np.testing.assert_array_equal(corruption(pixels, "a"), corruption(pixels, "a"))
    differs = (corruption(pixels, "a") != corruption(pixels, "b")).any()
    assert differs == (corruption.name == "noise")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("name", ["blur", "noise", "jpeg", "contrast"])
def test_a_stronger_corruption_changes_a_picture_more(name: str, dtype: str) -> None:
    pixels = scene(224, 224, 3, dtype)
    distances = [
        np.abs(one(pixels, "key").astype(np.float64) - pixels).mean() for one in CORRUPTIONS if one.name == name
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_low_contrast_and_blur_keep_the_mean() -> None:
    pixels = scene(64, 64)
    for one in CORRUPTIONS:
        if one.name in ("blur", "contrast"):
            assert one(pixels, "key").mean() == pytest.approx(pixels.mean(), abs=1)


def test_about_the_requested_fraction_is_chosen_by_key() -> None:
    keys = [f"folder/{number}.jpg" for number in range(4000)]
    few, many = ({key for key in keys if chosen(key, share)} for share in (0.1, 0.3))
    assert 330 < len(few) < 470
    assert few < many
    assert not any(chosen(key, 0.0) for key in keys)
    assert all(chosen(key, 1.0) for key in keys)


def test_accuracy_under_corruption_counts_judged_pictures_only() -> None:
    answers = [list("1" + "01"[number % 2] * len(CORRUPTIONS)) for number in range(6)]
    answers[1][1] = "-"
    robustness = measure([(number, "".join(one)) for number, one in reversed(list(enumerate(answers)))], 4)
    assert robustness is not None
    assert (robustness.pictures, robustness.clean) == (4, 1.0)
    assert (robustness.judged[0], robustness.top1[0]) == (3, pytest.approx(1 / 3))
    assert (robustness.judged[1], robustness.top1[1]) == (4, 0.5)
    for one in answers:
        one[3] = "-"
    nothing = measure([(number, "".join(one)) for number, one in enumerate(answers)], 4)
    assert nothing is not None
    assert nothing.top1[2] is None
    assert measure([], 4) is None
