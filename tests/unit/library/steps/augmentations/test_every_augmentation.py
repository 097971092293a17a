"""Properties of every augmentation, for every dtype and number of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from library.errors import BadPicture
from library.randomness import generator
from library.steps import REGISTRY
from tests.step_examples import AUGMENTATIONS, DTYPES, picture, step

CHANNELS = (1, 3, 4, 5)
RESIZING = ("random_crop", "random_resized_crop")
RGB_ONLY = ("saturation", "hue")
UINT8_ONLY = ("jpeg_quality",)
WITH_P = [name for name, cls in REGISTRY.items() if cls.kind == "augmentation" and "p" in cls.__dataclass_fields__]


def name_of(text: str) -> str:
    return text.split("(")[0]


def drawn(text: str, pixels: NDArray[Any], *parts: int) -> NDArray[Any]:
    return step(text)(pixels, generator(*parts))


def takes(text: str, dtype: str, channels: int) -> bool:
    return (name_of(text) not in RGB_ONLY or channels == 3) and (name_of(text) not in UINT8_ONLY or dtype == "uint8")


CASES = [
    (text, dtype, channels)
    for text in AUGMENTATIONS
    for dtype in DTYPES
    for channels in CHANNELS
    if takes(text, dtype, channels)
]


def test_every_registered_augmentation_has_an_example() -> None:
    augmentations = {name for name, cls in REGISTRY.items() if cls.kind == "augmentation"}
    assert augmentations == {name_of(text) for text in AUGMENTATIONS}


@pytest.mark.parametrize(("text", "dtype", "channels"), CASES)
def test_an_augmentation_keeps_dtype_channels_and_size_and_its_input(text: str, dtype: str, channels: int) -> None:
    pixels = picture(dtype, channels)  # read-only: writing to it would raise
    for number in range(4):
        result = drawn(text, pixels, number)
        assert result.dtype == pixels.dtype
        assert result.shape[2] == channels
        assert np.isfinite(result).all()
        assert result.flags.c_contiguous
        if name_of(text) not in RESIZING:
            assert result.shape == pixels.shape


@pytest.mark.parametrize("text", AUGMENTATIONS)
def test_the_random_numbers_determine_the_pixels(text: str) -> None:
    pixels = picture()
    variants = [drawn(text, pixels, number) for number in range(12)]
    for number, variant in enumerate(variants):
        np.testing.assert_array_equal(drawn(text, pixels, number), variant)
    fixed = name_of(text) == "flip" and "p=1" in text
    assert (len({variant.tobytes() for variant in variants}) == 1) == fixed


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("text", AUGMENTATIONS)
def test_an_augmentation_accepts_any_memory_layout(text: str, channels: int) -> None:
    channels = channels if takes(text, "uint8", channels) else 3
    pixels = picture(channels=channels)
    mirrored_view = np.asfortranarray(pixels[::-1])[::-1]
    for number in range(4):
        np.testing.assert_array_equal(drawn(text, mirrored_view, number), drawn(text, pixels, number))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("text", AUGMENTATIONS)
def test_a_tiny_picture_is_augmented_or_refused_as_too_small(text: str, shape: tuple[int, int]) -> None:
    pixels = picture(height=shape[0], width=shape[1])
    if name_of(text) == "random_crop":
        with pytest.raises(BadPicture, match="too_small"):
            drawn(text, pixels, 1)
        return
    for number in range(10):
        assert min(drawn(text, pixels, number).shape) >= 1


@pytest.mark.parametrize("text", [text for text in AUGMENTATIONS if takes(text, "uint8", 130)])
def test_more_channels_than_opencv_supports_are_processed_in_groups(text: str) -> None:
    pixels = picture(channels=130, height=12, width=14)
    pixels = np.ascontiguousarray(np.tile(pixels, (2, 2, 1)))
    assert drawn(text, pixels, 1).shape[2] == 130


@pytest.mark.parametrize("name", WITH_P)
def test_probability_0_returns_the_very_same_array(name: str) -> None:
    needed = {"rotate": "degrees=30, ", "shear": "degrees=30, ", "zoom": "amount=0.5, ", "sometimes": "steps=invert, "}
    pixels = picture()
    for number in range(5):
        assert drawn(f"{name}({needed.get(name, '')}p=0)", pixels, number) is pixels


@pytest.mark.parametrize(
    "text",
    [
        "rotate(0)",
        "shift(0, 0)",
        "shear(0)",
        "zoom(0)",
        "brightness(0)",
        "contrast(0)",
        "saturation(0)",
        "hue(0)",
        "channel_shift(0)",
        "random_crop([20, 26])",
        "random_resized_crop([20, 26], scale=[1, 1], ratio=[1.3, 1.3])",
        "randaugment(num_ops=1, magnitude=0)",
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_without_effect_keep_the_pixels(text: str, dtype: str) -> None:
    pixels = picture(dtype)
    for number in range(3):
        # Autocontrast and equalize have no magnitude, so they also change pixels at 0.
        if text.startswith("randaugment") and generator(number).integers(14) >= 12:
            continue
        np.testing.assert_array_equal(drawn(text, pixels, number), pixels)


@pytest.mark.parametrize(
    ("text", "dtype", "channels", "reason"),
    [
        ("saturation(0.5)", "uint8", 1, "wrong_channels"),
        ("hue(0.5)", "float32", 4, "wrong_channels"),
        ("jpeg_quality", "uint16", 3, "wrong_dtype"),
        ("random_crop(21)", "uint8", 3, "too_small"),
    ],
)
def test_a_picture_that_a_step_cannot_process_is_refused_by_reason(
    text: str, dtype: str, channels: int, reason: str
) -> None:
    with pytest.raises(BadPicture) as refused:
        drawn(text, picture(dtype, channels), 1)
    assert refused.value.reason == reason


def test_a_side_too_long_for_opencv_is_refused_only_by_warps() -> None:
    long = np.zeros((1, 32_767, 1), np.uint8)
    with pytest.raises(BadPicture, match="too_large"):
        drawn("rotate(30)", long, 1)
    assert drawn("shift(0.5, 0)", long, 1).shape == long.shape
    assert drawn("rotate(30)", long[:, 1:], 1).shape == (1, 32_766, 1)
