"""Steps with a probability, and policies that draw operations from a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from library.randomness import generator
from library.steps.augmentations import policies
from tests.step_examples import DTYPES, WHITE, flat, picture, step


def draws(text: str, pixels: NDArray[Any], count: int) -> list[NDArray[Any]]:
    one_step = step(text)
    return [one_step(pixels, generator(number)) for number in range(count)]


def operation(name: str, pixels: NDArray[Any], magnitude: int, sign: int = 1, *, wide: bool = False) -> NDArray[Any]:
    """One operation of a table, by name."""
    table = policies.WIDE_TABLE if wide else policies.RANDAUGMENT_TABLE
    return table[name](pixels, magnitude / 30, sign, 0.0)[0]


def photo() -> NDArray[np.uint8]:
    """A smooth picture with colours of all kinds."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 4, y * 5, 255 - (x + y) * 2], axis=2).astype(np.uint8)


def test_sometimes_runs_all_its_steps_or_none_with_its_probability() -> None:
    pixels = picture()
    both = step("invert")(step("rotate90")(pixels))
    variants = draws("sometimes(0.3, rotate90 | invert)", pixels, 1000)
    changed = [variant for variant in variants if variant is not pixels]
    assert 260 < len(changed) < 340
    for variant in changed[:5]:
        np.testing.assert_array_equal(variant, both)


def test_steps_inside_sometimes_draw_new_values_each_time() -> None:
    assert len({variant.tobytes() for variant in draws("sometimes(1, rotate(30))", picture(), 10)}) == 10


@pytest.mark.parametrize(
    ("text", "wide", "magnitudes"),
    [("randaugment(num_ops=1, magnitude=11, fill=0)", False, [11]), ("trivial_augment(fill=0)", True, range(31))],
)
def test_every_operation_of_the_table_is_drawn_equally_often(text: str, wide: bool, magnitudes: Sequence[int]) -> None:
    pixels = photo()[::3, ::3].copy()
    names = [name for name in policies.WIDE_TABLE if name != "identity"]
    names_by_result = {
        operation(name, pixels, magnitude, sign, wide=wide).tobytes(): name
        for name in [*names, "identity"]  # last, because at magnitude 0 the others are identities too
        for magnitude in magnitudes
        for sign in (-1, 1)
    }
    counts = Counter(names_by_result[variant.tobytes()] for variant in draws(text, pixels, 1400))
    assert set(counts) == {*names, "identity"}
    assert min(counts.values()) > 60
    grey = np.ascontiguousarray(pixels[:, :, :1])
    assert all(variant.shape == grey.shape for variant in draws(text, grey, 100))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("magnitude", [6, 15, 30])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("saturation", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_factors_equal_pillows_enhancers(name: str, enhancer: Any, magnitude: int, sign: int) -> None:
    pixels = photo()
    expected = np.asarray(enhancer(Image.fromarray(pixels)).enhance(1 + sign * 0.9 * magnitude / 30)).astype(int)
    actual = operation(name, pixels, magnitude, sign)[1:-1, 1:-1]  # Pillow does not sharpen the outermost pixels
    assert np.abs(actual - expected[1:-1, 1:-1]).max() <= 2


@pytest.mark.parametrize("magnitude", [0, 8, 15, 30])
def test_posterize_and_solarize_equal_pillows(magnitude: int) -> None:
    pixels = photo()
    image = Image.fromarray(pixels)
    posterized = ImageOps.posterize(image, 8 - round(magnitude / 30 * 4))
    np.testing.assert_array_equal(operation("posterize", pixels, magnitude), np.asarray(posterized))
    solarized = ImageOps.solarize(image, math.ceil(255 * (1 - magnitude / 30)) if magnitude else 256)
    np.testing.assert_array_equal(operation("solarize", pixels, magnitude), np.asarray(solarized))


def test_the_maximum_magnitudes_are_those_of_the_papers() -> None:
    pixels = np.zeros((331, 331, 1), np.uint8)
    pixels[165, 165] = 255
    for wide, pixels_moved in ((False, 150), (True, 32)):
        assert np.argwhere(operation("shift_x", pixels, 30, wide=wide))[0].tolist() == [165, 165 + pixels_moved, 0]
        assert np.argwhere(operation("shift_y", pixels, 30, -1, wide=wide))[0].tolist() == [165 - pixels_moved, 165, 0]
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert len(np.unique(operation("posterize", values, 30))) == 16
    assert len(np.unique(operation("posterize", values, 30, wide=True))) == 4
    np.testing.assert_array_equal(operation("solarize", values, 30), 255 - values)
    turned = operation("rotate", picture(height=31, width=31), 20, wide=True)
    np.testing.assert_array_equal(turned, np.rot90(picture(height=31, width=31)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", policies.WIDE_TABLE)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_an_operation_keeps_shape_and_dtype_at_any_depth(name: str, dtype: str, channels: int) -> None:
    if name == "saturation" and channels != 3:
        return
    pixels = picture(dtype, channels)
    for magnitude in (0, 9, 30):
        result = operation(name, pixels, magnitude)
        assert (result.shape, result.dtype) == (pixels.shape, pixels.dtype)
        if name not in ("equalize", "stretch", "posterize", "solarize"):
            eight = operation(name, (pixels.astype(float) / WHITE[dtype] * 255).astype(np.uint8), magnitude)
            within = np.clip(result / WHITE[dtype], 0, 1)
            assert np.abs(within - eight / 255).max() < 0.02


def test_posterize_and_solarize_work_alike_at_every_depth() -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    sixteen, real = eight.astype(np.uint16) * 257, (eight / 255).astype(np.float32)
    np.testing.assert_array_equal(operation("posterize", sixteen, 30) >> 8, operation("posterize", eight, 30))
    assert len(np.unique(operation("posterize", real, 30))) == 17  # 1.0 is a separate level
    np.testing.assert_array_equal(operation("solarize", sixteen, 15) // 257, operation("solarize", eight, 15))
    np.testing.assert_allclose(operation("solarize", real, 15) * 255, operation("solarize", eight, 15), atol=1e-4)


def test_fill_says_what_is_outside_the_picture() -> None:
    white = flat(1.0, height=40, width=40)
    for text, allowed in (("randaugment(magnitude=30)", {128}), ("randaugment(magnitude=30, fill=0)", {0})):
        rims = [
            variant for variant in draws(text.replace("(", "(num_ops=1, "), white, 60) if len(np.unique(variant)) > 1
        ]
        assert rims
        for variant in rims:
            assert allowed & set(np.unique(variant).tolist())


def test_results_do_not_depend_on_opencvs_number_of_threads() -> None:
    pixels = picture(height=200, width=300)
    threads = cv2.getNumThreads()
    try:
        for text in ("rotate(30)", "randaugment(num_ops=3)", "random_blur", "hue(0.5)"):
            cv2.setNumThreads(4)
            several = draws(text, pixels, 3)
            cv2.setNumThreads(1)
            for one, more in zip(draws(text, pixels, 3), several, strict=True):
                np.testing.assert_array_equal(one, more)
    finally:
        cv2.setNumThreads(threads)
