"""Augmentations of tone and colour, and those that degrade a picture: noise, blur, JPEG."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from library.errors import BadPicture
from library.imaging import codec
from library.randomness import generator
from tests.step_examples import DTYPES, WHITE, assert_close, flat, picture, step

LUMA = np.array([0.299, 0.587, 0.114])


def draws(text: str, pixels: NDArray[Any], count: int) -> list[NDArray[Any]]:
    one_step = step(text)
    return [one_step(pixels, generator(number)) for number in range(count)]


def as_pixels(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    return values.astype(np.float32) if dtype == "float32" else np.rint(np.clip(values, 0, WHITE[dtype])).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
def test_brightness_multiplies_all_values(dtype: str, channels: int, factor: float) -> None:
    pixels = picture(dtype, channels)
    (result,) = draws(f"brightness([{factor}, {factor}])", pixels, 1)
    assert_close(result, as_pixels(pixels.astype(float) * factor, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
def test_contrast_multiplies_the_distance_from_the_mean_grey(dtype: str, channels: int, factor: float) -> None:
    pixels = picture(dtype, channels)
    values = pixels.astype(float)
    mean = (values @ LUMA).mean() if channels == 3 else values.mean()
    (result,) = draws(f"contrast([{factor}, {factor}])", pixels, 1)
    assert_close(result, as_pixels(mean + factor * (values - mean), dtype), rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
def test_saturation_multiplies_the_distance_from_each_pixels_grey(dtype: str, factor: float) -> None:
    pixels = picture(dtype)
    grey = (pixels.astype(float) @ LUMA)[:, :, None]
    (result,) = draws(f"saturation([{factor}, {factor}])", pixels, 1)
    assert_close(result, as_pixels(grey + factor * (pixels - grey), dtype), rtol=1e-4)


@pytest.mark.parametrize("turn", [-0.4, 0.1, 1 / 3, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hue_rotates_hues_and_keeps_value_and_saturation(dtype: str, turn: float) -> None:
    pixels = picture(dtype)
    (result,) = draws(f"hue([{turn}, {turn}])", pixels, 1)
    expected = [
        colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        for hue, saturation, value in (
            colorsys.rgb_to_hsv(*(float(channel) for channel in pixel))
            for pixel in pixels.reshape(-1, 3) / WHITE[dtype]
        )
    ]
    difference = np.abs(result.reshape(-1, 3) / WHITE[dtype] - np.array(expected))
    assert difference.max() < (11 / 255 if dtype == "uint8" else 1e-4)
    assert difference.mean() < (1 / 255 if dtype == "uint8" else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_third_of_the_wheel_turns_red_into_green(dtype: str) -> None:
    red = np.zeros((4, 4, 3), dtype)
    red[:, :, 0] = WHITE[dtype]
    (green,) = draws("hue([0.3333333, 0.3333333])", red, 1)
    assert_close(green, np.ascontiguousarray(red[:, :, [1, 0, 2]]), steps=5 if dtype == "uint8" else 1)


def test_hue_accepts_floats_of_any_scale_and_sign() -> None:
    pixels = picture("float32")
    (expected,) = draws("hue([0.2, 0.2])", pixels, 1)
    for scale, offset in ((1e-6, 0.0), (4e5, 0.0), (1.0, -0.7)):
        (result,) = draws("hue([0.2, 0.2])", pixels * np.float32(scale) + np.float32(offset), 1)
        np.testing.assert_allclose((result - np.float32(offset)) / np.float32(scale), expected, atol=1e-4)
    flat_grey = flat(0.5, "float32")
    np.testing.assert_array_equal(draws("hue([0.2, 0.2])", flat_grey, 1)[0], flat_grey)


def test_hue_and_saturation_keep_grey_pixels_grey() -> None:
    grey = np.repeat(picture(channels=1), 3, axis=2)
    for text in ("hue(0.5)", "saturation(1)"):
        for variant in draws(text, grey, 5):
            assert_close(variant, grey)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5, 130])
def test_channel_shift_adds_a_different_number_to_each_channel(dtype: str, channels: int) -> None:
    pixels = flat(0.5, dtype, channels)
    for variant in draws("channel_shift(0.3)", pixels, 3):
        moved = (variant.astype(float) - pixels) / WHITE[dtype]
        assert np.ptp(moved, axis=(0, 1)).max() < 1e-6
        assert np.abs(moved).max() <= 0.303
        assert len(np.unique(moved[0, 0])) > channels * 0.4
    bright = flat(0.9, dtype, channels)
    if dtype != "float32":
        assert max(variant.max() for variant in draws("channel_shift(0.5)", bright, 20)) == WHITE[dtype]


@pytest.mark.parametrize("text", ["brightness(0.4)", "brightness([0.6, 1.4])"])
def test_factors_are_drawn_uniformly_about_1(text: str) -> None:
    factors = np.array([variant[0, 0, 0] for variant in draws(text, np.ones((1, 1, 1), np.float32), 2000)])
    assert factors.mean() == pytest.approx(1, abs=0.02)
    assert factors.std() == pytest.approx(0.8 / np.sqrt(12), rel=0.04)
    assert (0.6 <= factors.min() < 0.602, 1.398 < factors.max() <= 1.4) == (True, True)


def test_a_factor_is_never_negative() -> None:
    factors = np.array([variant[0, 0, 0] for variant in draws("brightness(3)", np.ones((1, 1, 1), np.float32), 500)])
    assert factors.min() >= 0
    assert factors.mean() == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("text", ["contrast(0.5)", "hue([0.1, 0.2])"])
def test_a_picture_with_nan_is_refused(text: str) -> None:
    pixels = picture("float32").copy()
    pixels[3, 4, 1] = np.nan
    with pytest.raises(BadPicture, match="not_finite"):
        draws(text, pixels, 1)


@pytest.mark.parametrize(("dtype", "sigma"), [("uint8", 0.05), ("uint16", 0.01), ("float32", 0.2)])
def test_noise_is_normal_and_independent_between_channels(dtype: str, sigma: float) -> None:
    pixels = flat(0.5, dtype, 3, 120, 150)
    (noisy,) = draws(f"gaussian_noise({sigma})", pixels, 1)
    noise = (noisy.astype(float) - pixels) / (WHITE[dtype] * sigma)
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, rel=0.02)
    for multiple, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        # Rounding by half a level moves a bound of uint8 by up to 4% of sigma.
        assert (np.abs(noise) < multiple).mean() == pytest.approx(share, abs=0.03 if dtype == "uint8" else 0.006)
    apart = np.corrcoef(noise.reshape(-1, 3).T)
    assert np.abs(apart - np.eye(3)).max() < 0.03


def test_a_random_blur_is_within_the_range_of_its_sigma() -> None:
    pixels = picture("float32", height=60, width=60, seed=3)
    narrow, wide = (step(f"gaussian_blur({sigma})")(pixels).std() for sigma in (0.5, 3))
    spreads = [variant.std() for variant in draws("random_blur([0.5, 3])", pixels, 40)]
    assert wide <= min(spreads) < max(spreads) <= narrow
    fixed = draws("random_blur([1.5, 1.5])", pixels, 1)[0]
    np.testing.assert_array_equal(fixed, step("gaussian_blur(1.5)")(pixels))


def test_jpeg_quality_encodes_at_qualities_of_the_range() -> None:
    pixels = picture(height=40, width=48)
    expected = {
        codec.decode(codec.encode(pixels, codec.Encoding("jpeg", quality))[0]).tobytes() for quality in (20, 21, 22)
    }
    assert {variant.tobytes() for variant in draws("jpeg_quality(20, 22)", pixels, 60)} == expected


def test_jpeg_quality_encodes_many_bands_one_by_one() -> None:
    pixels = picture(channels=5, height=40, width=48)
    (together,) = draws("jpeg_quality(30, 30)", pixels, 1)
    for band in range(5):
        (alone,) = draws("jpeg_quality(30, 30)", np.ascontiguousarray(pixels[:, :, [band]]), 1)
        np.testing.assert_array_equal(together[:, :, [band]], alone)
