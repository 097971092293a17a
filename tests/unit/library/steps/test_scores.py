"""Scores of pixels: known values, and the same value whatever the dtype."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from library.errors import BadPicture
from library.imaging.picture import Pixels
from library.steps import scores
from tests.picture_examples import scene
from tests.step_examples import DTYPES, WHITE

NAMES = [*scores.GREY_SCORES, *scores.COLOUR_SCORES]


def as_dtype(pixels: Pixels, dtype: str) -> Pixels:
    """The same picture in another dtype; `pixels` are uint8."""
    if dtype == "uint16":
        return pixels.astype(np.uint16) * 257
    return pixels if dtype == "uint8" else (pixels / 255).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_same_in_every_dtype(name: str, dtype: str) -> None:
    pixels = scene(60, 80)
    assert scores.score(name, as_dtype(pixels, dtype)) == pytest.approx(scores.score(name, pixels), rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_has_the_precision_in_which_it_is_stored(name: str) -> None:
    value = scores.score(name, scene(60, 80))
    assert value == float(np.float32(value))


@pytest.mark.parametrize("name", NAMES)
def test_a_mirrored_or_turned_picture_has_the_same_score(name: str) -> None:
    pixels = scene(64, 64)
    turned = np.ascontiguousarray(pixels.transpose(1, 0, 2)[:, ::-1])
    assert scores.score(name, turned) == pytest.approx(scores.score(name, pixels), rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flat_picture_has_no_entropy_contrast_sharpness_or_colour(dtype: str) -> None:
    flat = np.full((30, 40, 3), WHITE[dtype] * 0.4, dtype)
    for name in ("entropy", "contrast", "sharpness", "colourfulness", "largest_std"):
        assert scores.score(name, flat) == pytest.approx(0, abs=1e-3)
    for name in ("brightness", "brightness_p5", "brightness_p99"):
        assert scores.score(name, flat) == pytest.approx(0.4, abs=1 / 255)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_entropy_of_equally_frequent_levels_is_the_log_of_their_number(bits: int) -> None:
    levels = np.linspace(0, 255, 2**bits).round().astype(np.uint8)
    assert scores.score("entropy", np.tile(levels, 8).reshape(-1, 8, 1)) == pytest.approx(bits, abs=1e-5)


def test_percentiles_are_levels_that_pixels_have() -> None:
    pixels = np.zeros((10, 100, 1), np.uint8)
    pixels.reshape(-1)[:20] = 200  # 2% of the pixels are light
    assert scores.score("brightness_p99", pixels) == pytest.approx(200 / 255)
    assert scores.score("brightness_p5", pixels) == 0
    pixels.reshape(-1)[5:20] = 0
    assert scores.score("brightness_p99", pixels) == 0


def test_colourfulness_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (50, 60, 3), np.uint8)
    red, green, blue = np.moveaxis(pixels.astype(np.float64), 2, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    expected = spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
    assert scores.score("colourfulness", pixels) == pytest.approx(expected, rel=1e-5)
    opaque = np.dstack([pixels, np.full((50, 60), 255, np.uint8)])
    assert scores.score("colourfulness", opaque) == scores.score("colourfulness", pixels)
    assert scores.score("colourfulness", pixels[:, :, :1]) == 0
    assert scores.score("colourfulness", np.repeat(pixels, 2, axis=2)) == 0


def test_sharpness_falls_with_blur_and_hardly_with_size() -> None:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (40, 40, 1), np.uint8)
    picture = np.asarray(cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_NEAREST))[:, :, None]
    blurred = np.asarray(cv2.GaussianBlur(picture, (0, 0), 4))[:, :, None]
    assert scores.score("sharpness", blurred) < scores.score("sharpness", picture) / 10
    larger = np.asarray(cv2.resize(picture, (1024, 1024), interpolation=cv2.INTER_NEAREST))[:, :, None]
    assert scores.score("sharpness", larger) == pytest.approx(scores.score("sharpness", picture), rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_no_score_is_made_of_a_picture_with_nan(name: str) -> None:
    pixels = as_dtype(scene(20, 30), "float32")
    pixels[3, 4] = np.nan
    with pytest.raises(BadPicture, match="not_finite"):
        scores.score(name, pixels)
