"""Pixels that are removed get what their neighbours predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from library.evaluation.inside.imputation import NOISE, imputed


def removal(share: float, seed: int = 0, height: int = 12, width: int = 17) -> Any:
    return np.random.default_rng(seed).random((height, width)) < share


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1), (np.float32, 5)])
def test_a_picture_of_one_colour_stays_as_it_is(share: float, dtype: Any, channels: int) -> None:
    pixels = np.full((12, 17, channels), 0.25 if dtype is np.float32 else 99, dtype)
    result = imputed(pixels, removal(share), noise=0)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, pixels, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_pixels_that_stay_are_untouched_and_bound_the_others(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 17, 3), np.uint8)
    removed = removal(0.2 + 0.2 * seed, seed)
    result = imputed(pixels, removed, noise=0)
    np.testing.assert_array_equal(result[~removed], pixels[~removed])
    assert (result[removed] >= pixels[~removed].min(0)).all()
    assert (result[removed] <= pixels[~removed].max(0)).all()


def test_one_pixel_is_the_weighted_mean_of_its_eight_neighbours() -> None:
    pixels = np.random.default_rng(0).random((3, 3, 2))
    removed = np.zeros((3, 3), bool)
    removed[1, 1] = True
    sides = pixels[[0, 1, 1, 2], [1, 0, 2, 1]].sum(0) / 6
    corners = pixels[[0, 0, 2, 2], [0, 2, 0, 2]].sum(0) / 12
    assert imputed(pixels, removed, noise=0)[1, 1] == pytest.approx(sides + corners)
    # At the edge the weights of the neighbours that exist are divided by their sum.
    removed = np.zeros((3, 3), bool)
    removed[0, 0] = True
    expected = (pixels[0, 1] / 6 + pixels[1, 0] / 6 + pixels[1, 1] / 12) / (5 / 12)
    assert imputed(pixels, removed, noise=0)[0, 0] == pytest.approx(expected)


def test_a_slope_is_continued_through_what_is_gone() -> None:
    rows, columns = np.mgrid[:12, :17]
    pixels = (0.02 * rows + 0.03 * columns)[:, :, None]
    removed = np.zeros((12, 17), bool)
    removed[3:9, 4:13] = True
    np.testing.assert_allclose(imputed(pixels, removed, noise=0), pixels, atol=1e-9)


def test_the_noise_has_its_size_and_is_the_same_each_time() -> None:
    pixels = np.full((60, 60, 3), 0.5)
    removed = removal(0.7, height=60, width=60)
    result = imputed(pixels, removed)
    assert (result[removed] - 0.5).std() == pytest.approx(NOISE, rel=0.1)
    np.testing.assert_array_equal(result, imputed(pixels, removed))
    fewer = removed & removal(0.5, 1, 60, 60)
    np.testing.assert_allclose(imputed(pixels, fewer)[fewer], result[fewer], atol=1e-9)


def test_a_picture_of_which_nothing_is_removed_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 2), np.uint8)
    result = imputed(pixels, np.zeros((3, 3), bool))
    np.testing.assert_array_equal(result, pixels)
    assert not np.shares_memory(result, pixels)


def test_a_picture_of_which_nothing_stays_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        imputed(np.zeros((4, 4, 1), np.uint8), np.ones((4, 4), bool))
