"""Geometric augmentations: rotations, flips, shifts, shears, zooms, crops and erased rectangles."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from library.randomness import generator
from library.steps.augmentations.geometric import rotation, shear, shift, warp
from library.steps.moves import moved
from tests.step_examples import DTYPES, assert_close, flat, picture, step

NUMPY_MODES = {"edge": "edge", "reflect": "symmetric", "wrap": "wrap"}


def ramp(height: int = 21, width: int = 31) -> NDArray[Any]:
    """Float values that grow along both axes, so that linear interpolation is exact."""
    y, x = np.mgrid[0:height, 0:width]
    return (x + 100 * y).astype(np.float32)[:, :, None]


def draws(text: str, pixels: NDArray[Any], count: int) -> list[NDArray[Any]]:
    one_step = step(text)
    return [one_step(pixels, generator(number)) for number in range(count)]


def shift_by(pixels: NDArray[Any], right: int, down: int, mode: str, **options: Any) -> NDArray[Any]:
    """The expected shift, by numpy.pad."""
    height, width = pixels.shape[:2]
    pad = np.pad(pixels, ((abs(down),) * 2, (abs(right),) * 2, (0, 0)), mode, **options)
    return pad[abs(down) - down :, abs(right) - right :][:height, :width]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
@given(right=st.integers(-26, 26), down=st.integers(-20, 20))
@settings(deadline=None, max_examples=15)
def test_a_shift_equals_numpys_pad(dtype: str, channels: int, right: int, down: int) -> None:
    pixels = picture(dtype, channels)
    for fill, mode in NUMPY_MODES.items():
        np.testing.assert_array_equal(
            moved(pixels, shift(right, down, *pixels.shape[:2], fill)), shift_by(pixels, right, down, mode)
        )
    white = {"uint8": 128, "uint16": 32768, "float32": 0.5}[dtype]
    expected = shift_by(pixels, right, down, "constant", constant_values=white)
    np.testing.assert_array_equal(moved(pixels, shift(right, down, *pixels.shape[:2], 0.5)), expected)


@pytest.mark.parametrize("fill", NUMPY_MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_warp_fills_the_outside_like_numpys_pad(dtype: str, fill: str) -> None:
    pixels = picture(dtype, 5, 21, 27)
    # A third of the size about the middle pixel: every third pixel is read, without interpolation.
    shrunk = moved(pixels, warp(((1 / 3, 0.0), (0.0, 1 / 3)), *pixels.shape[:2], fill))
    wide = cast(Any, np).pad(pixels, ((42, 42), (54, 54), (0, 0)), NUMPY_MODES[fill])
    assert_close(shrunk, wide[42 - 20 :: 3, 54 - 26 :: 3][:21, :27], rtol=1e-3)


@pytest.mark.parametrize("degrees", [-150, -33.3, 10, 90, 180])
def test_a_rotation_samples_the_picture_like_scipy(degrees: float) -> None:
    pixels = picture("float32", 1, 25, 37)
    expected = ndimage.rotate(pixels[:, :, 0], degrees, reshape=False, order=1, mode="constant")
    inside = ndimage.rotate(np.ones((25, 37)), degrees, reshape=False, order=1, mode="constant") > 0.999
    np.testing.assert_allclose(
        moved(pixels, rotation(degrees, *pixels.shape[:2], 0.0))[:, :, 0][inside], expected[inside], atol=0.02
    )


def test_positive_angles_rotate_counter_clockwise() -> None:
    pixels = picture("uint8", 3, 21, 21)
    np.testing.assert_array_equal(moved(pixels, rotation(90, *pixels.shape[:2], 0.0)), np.rot90(pixels))
    (turned,) = draws("rotate([90, 90])", pixels, 1)
    np.testing.assert_array_equal(turned, np.rot90(pixels))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_all_channels_are_transformed_alike(dtype: str, channels: int) -> None:
    plane = picture(dtype, 1)
    pixels = np.repeat(plane, channels, axis=2)
    for text in ("rotate(40)", "shear(30)", "zoom(0.5)", "shift(0.4, 0.4)", "random_crop(12, padding=3)", "flip"):
        for alone, together in zip(draws(text, plane, 4), draws(text, pixels, 4), strict=True):
            assert_close(together, np.repeat(alone, channels, axis=2))


@pytest.mark.parametrize("fill", ["edge", "reflect", "wrap", 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flat_picture_stays_flat(dtype: str, fill: str | float) -> None:
    pixels = flat(0.5, dtype) if fill != 0.5 else flat(128 / 255 if dtype == "uint8" else 0.5, dtype)
    shown = f'"{fill}"' if isinstance(fill, str) else fill
    for text in ("rotate(90", "shear(40", "zoom(0.8", "shift(1, 1"):
        for variant in draws(f"{text}, fill={shown})", pixels, 5):
            assert_close(variant, np.asarray(pixels), steps=1)


def test_a_shear_slides_rows_and_keeps_the_middle_row() -> None:
    pixels = ramp()
    slanted = moved(pixels, shear(0.5, 0, *pixels.shape[:2], "edge"))
    np.testing.assert_allclose(slanted[10], pixels[10], atol=1e-3)
    np.testing.assert_allclose(slanted[14, 8:24, 0], pixels[14, 6:22, 0], atol=0.05)
    upright = moved(pixels, shear(0, 0.5, *pixels.shape[:2], "edge"))
    np.testing.assert_allclose(upright[:, 15], pixels[:, 15], atol=1e-2)
    np.testing.assert_allclose(upright[6:14, 19, 0], pixels[4:12, 19, 0], atol=4)


def test_a_zoom_above_1_enlarges_about_the_centre() -> None:
    pixels = ramp()
    (near,) = draws("zoom([2, 2])", pixels, 1)
    np.testing.assert_allclose(near[10, 15], pixels[10, 15], atol=1e-2)
    np.testing.assert_allclose(near[10, 19], pixels[10, 17], atol=1e-2)
    (far,) = draws("zoom([0.5, 0.5])", pixels, 1)
    np.testing.assert_allclose(far[10, 17], pixels[10, 19], atol=1e-2)
    assert far[0, 0] == 0


def test_angles_and_factors_are_drawn_uniformly_from_their_range() -> None:
    pixels = np.zeros((101, 101, 1), np.float32)
    pixels[50, 50:] = 1  # a line from the centre to the right
    angles: list[float] = []
    for turned in draws("rotate(60)", pixels, 400):
        y, x = np.argwhere(turned[:, :, 0] > 0.3).mean(axis=0)
        angles.append(math.degrees(math.atan2(50 - y, x - 50)))
    assert -60.5 < min(angles) < -55
    assert 55 < max(angles) < 60.5
    assert abs(np.mean(angles)) < 6
    assert np.std(angles) == pytest.approx(120 / math.sqrt(12), rel=0.08)


def test_a_flip_with_probability_1_is_an_exact_mirror() -> None:
    for channels in (1, 3, 5):
        pixels = picture(channels=channels)
        for text, mirrored in (
            ("flip(p=1)", pixels[:, ::-1]),
            ('flip(p=1, direction="vertical")', pixels[::-1]),
            ('flip(p=1, direction="both")', pixels[::-1, ::-1]),
        ):
            np.testing.assert_array_equal(draws(text, pixels, 1)[0], mirrored)


def test_flips_have_their_probability_and_both_draws_independently() -> None:
    pixels = picture(height=3, width=4)
    flipped = sum(variant is not pixels for variant in draws("flip(p=0.3)", pixels, 1000))
    assert 260 < flipped < 340
    kinds = [variant.tobytes() for variant in draws('flip(p=0.5, direction="both")', pixels, 1000)]
    counts = [kinds.count(kind) for kind in set(kinds)]
    assert len(counts) == 4
    assert min(counts) > 200


def test_a_random_crop_reaches_every_place_of_the_padded_picture() -> None:
    pixels = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    places = {padded[y : y + 3, x : x + 4].tobytes() for y in range(3) for x in range(3)}
    assert {crop.tobytes() for crop in draws("random_crop([3, 4], padding=1)", pixels, 200)} == places
    reflected = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), "symmetric")
    places = {reflected[y : y + 3, x : x + 4].tobytes() for y in range(3) for x in range(3)}
    crops = draws('random_crop([3, 4], padding=1, fill="reflect")', pixels, 200)
    assert {crop.tobytes() for crop in crops} == places


def test_a_resized_crop_has_an_area_and_aspect_ratio_of_its_ranges() -> None:
    y, x = np.mgrid[0:200, 0:300].astype(np.float32)
    pixels = np.stack([y, x], axis=2)
    areas: list[float] = []
    for crop in draws("random_resized_crop(32, scale=[0.1, 0.5], ratio=[0.5, 2])", pixels, 300):
        assert crop.shape == (32, 32, 2)
        # The values are the coordinates, so their differences give the size of the box.
        height, width = (crop[-1, 0, 0] - crop[0, 0, 0]) * 32 / 31, (crop[0, -1, 1] - crop[0, 0, 1]) * 32 / 31
        areas.append(float(height * width) / pixels[:, :, 0].size)
        assert 0.48 < width / height < 2.1
    assert 0.09 < min(areas) < 0.13
    assert 0.46 < max(areas) < 0.52
    assert np.mean(areas) == pytest.approx(0.3, abs=0.025)


def test_an_impossible_aspect_ratio_gives_the_largest_central_box() -> None:
    pixels = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 1), np.uint8)
    (crop,) = draws("random_resized_crop(4, scale=[1, 1])", pixels, 1)
    assert crop.min() >= 45
    assert crop.max() <= 55


def test_random_erase_changes_one_rectangle_of_the_requested_area() -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    shares: list[float] = []
    for variant in draws("random_erase(p=1, scale=[0.1, 0.3], fill=1)", pixels, 200):
        mask = variant[:, :, 0] == 255
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns) == np.ptp(rows) * np.ptp(columns) + len(rows) + len(columns) - 1
        assert set(np.unique(variant)) == {0, 255}
        shares.append(float(mask.mean()))
    assert 0.09 < min(shares) < 0.12
    assert 0.27 < max(shares) < 0.31


@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535), ("float32", 1.0)])
def test_noise_in_the_rectangle_is_uniform_from_black_to_white(dtype: str, white: float) -> None:
    pixels = np.zeros((60, 80, 3), dtype)
    (variant,) = draws("random_erase(p=1, scale=[0.9, 0.9], ratio=[0.75, 0.75])", pixels, 1)
    noise = variant[variant > 0] / white
    assert noise.max() > 0.99
    assert noise.min() < 0.01
    assert noise.mean() == pytest.approx(0.5, abs=0.02)
    assert noise.std() == pytest.approx(1 / math.sqrt(12), rel=0.03)


def test_random_erase_has_its_probability() -> None:
    pixels = picture()
    assert 430 < sum(variant is not pixels for variant in draws("random_erase", pixels, 1000)) < 570
